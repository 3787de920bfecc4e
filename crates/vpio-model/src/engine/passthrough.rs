use super::{At, Denied, Dma, Engine, EngineState, Physical};
use crate::language::Policy;

/// A device behind its model: what the model allows is done, what it denies is not.
#[derive(Debug)]
pub struct Passthrough<D, P> {
    engine: Engine<D>,
    physical: P,
    accesses: u64,
    denied: u64,
    resets: u64,
}

/// What went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accesses in all.
    pub accesses: u64,
    /// Those that the model had to see ([`Engine::hooked`]).
    pub hooked: u64,
    /// Those that were denied.
    pub denied: u64,
    /// Resets that the model asked for.
    pub resets: u64,
}

impl<D: Dma, P: Physical> Passthrough<D, P> {
    /// Resets the device: the model begins where that ends.
    pub fn new(engine: Engine<D>, physical: P) -> Self {
        let mut this = Self {
            engine,
            physical,
            accesses: 0,
            denied: 0,
            resets: 0,
        };
        this.reset();
        this
    }

    /// The model at work.
    pub fn engine(&self) -> &Engine<D> {
        &self.engine
    }

    /// The device.
    pub fn physical(&self) -> &P {
        &self.physical
    }

    /// What went through until now.
    pub fn counts(&self) -> Counts {
        Counts {
            accesses: self.accesses,
            hooked: self.engine.hooked(),
            denied: self.denied,
            resets: self.resets,
        }
    }

    /// Writes a register.
    ///
    /// # Errors
    ///
    /// The model denies it, and nothing was written; a [`Policy::Reset`] is carried out already.
    pub fn write(&mut self, at: At, value: u64) -> Result<(), Denied> {
        self.accesses += 1;
        match self.engine.write(at, value, &self.physical) {
            Ok(value) => {
                self.physical.write(at.space, at.offset, at.width, value);
                Ok(())
            }
            Err(denied) => Err(self.denied(denied)),
        }
    }

    /// Reads a register.
    ///
    /// # Errors
    ///
    /// The model denies it; a [`Policy::Reset`] is carried out already.
    pub fn read(&mut self, at: At) -> Result<u64, Denied> {
        self.accesses += 1;
        match self.engine.before_read(at) {
            Err(denied) => Err(self.denied(denied)),
            Ok(watched) => {
                let value = self.physical.read(at.space, at.offset, at.width);
                if !watched {
                    return Ok(value);
                }
                let seen = self.engine.after_read(at, value, &self.physical);
                seen.map_err(|denied| self.denied(denied))
            }
        }
    }

    /// The device interrupts: to be called before the guest is told.
    ///
    /// # Errors
    ///
    /// As of [`Engine::interrupt`].
    pub fn interrupt(&mut self) -> Result<(), Denied> {
        let result = self.engine.interrupt(&self.physical);
        result.map_err(|denied| self.denied(denied))
    }

    /// Time passes.
    ///
    /// # Errors
    ///
    /// As of [`Engine::timer`].
    pub fn timer(&mut self) -> Result<(), Denied> {
        let result = self.engine.timer(&self.physical);
        result.map_err(|denied| self.denied(denied))
    }

    /// Whether the device can be given to somebody else now.
    pub fn is_reusable(&mut self) -> bool {
        self.engine.is_reusable(&self.physical)
    }

    /// Resets device and model.
    pub fn reset(&mut self) {
        self.physical.reset();
        self.engine.reset();
    }

    /// The context of whoever has the device, to be given to [`resume`](Self::resume).
    ///
    /// # Errors
    ///
    /// The model's `save` denies it.
    pub fn suspend(&mut self) -> Result<EngineState, Denied> {
        self.engine.save_device(&self.physical)?;
        Ok(self.engine.save())
    }

    /// Makes the device what it was for whoever has the context.
    ///
    /// # Errors
    ///
    /// The model's `restore` denies it, or the context is none of this model; device and model are then reset.
    pub fn resume(&mut self, state: &EngineState) -> Result<(), Denied> {
        self.reset();
        let restored = self.engine.restore(state).map_err(|error| Denied {
            policy: Policy::Reset,
            reason: error.to_string().into(),
        });
        let result = restored.and_then(|()| self.engine.restore_device(&self.physical));
        if result.is_err() {
            self.reset();
        }
        result
    }

    fn denied(&mut self, denied: Denied) -> Denied {
        self.denied += 1;
        if denied.policy == Policy::Reset {
            self.resets += 1;
            self.reset();
        }
        denied
    }
}
