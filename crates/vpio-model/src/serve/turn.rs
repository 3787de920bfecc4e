use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a guest that does not have the device waits for.
#[derive(Debug, Default)]
pub(super) struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// It has had the device since it was last refused.
    come: bool,
    /// It went away.
    gone: bool,
}

impl Turn {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest is refused. To be called where its turn cannot come meanwhile.
    pub fn refused(&self) {
        self.state().come = false;
    }

    /// Waits until it is worth trying again. False if the guest went away.
    pub fn wait(&self) -> bool {
        let waits = |state: &mut State| !state.come && !state.gone;
        let waited = self.changed.wait_while(self.state(), waits);
        !waited.unwrap_or_else(PoisonError::into_inner).gone
    }

    /// The guest has the device.
    pub fn come(&self) {
        self.state().come = true;
        self.changed.notify_all();
    }

    /// The guest went away.
    pub fn leave(&self) {
        self.state().gone = true;
        self.changed.notify_all();
    }
}
