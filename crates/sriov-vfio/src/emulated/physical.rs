use std::error::Error;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use pio_mmio_bus::bus::{AccessError, BusDevice};
use pio_mmio_bus::pci::{
    Capability, ConfigBuilder, ConfigError, ConfigSpace, ConfigSpaceState, ConfigStateError,
    DecodedRegion, Decoder, PciFunction, RequesterId,
};

use super::factory::{VfFactory, VfShare};
use super::layout::{Layout, LayoutError, VfBarLayout};
use super::registers::{SriovRegisters, share};
use crate::capability::vf_requester;
use crate::spec::sriov::{Control, Registers};

/// Why a physical function could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PhysicalError {
    /// Its layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Its configuration space.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// A function with the SR-IOV capability, and the virtual functions that the guest enabled.
///
/// Number and place of the virtual functions cannot change while they exist: NumVFs, the page size and ARI are read-only then
/// (PCIe §9.3.3). VF Enable stays clear if NumVFs is above TotalVFs. A reset of the function ends its virtual functions.
pub struct PhysicalFunction {
    config: Arc<ConfigSpace>,
    registers: Arc<SriovRegisters>,
    factory: Box<dyn VfFactory>,
    decoder: Arc<Decoder>,
    /// What the virtual functions agree with, `None` if they do not. Held during a change, and taken before all other locks.
    applied: Mutex<Option<Registers>>,
    /// Held for moments: a bus may be locked when it is taken.
    place: RwLock<Place>,
}

/// Where the function is, and its virtual functions with it.
struct Place {
    requester: RequesterId,
    upstream: bool,
    functions: Vec<Live>,
    missing: Vec<(u16, Arc<dyn Error + Send + Sync>)>,
}

/// A virtual function that exists.
struct Live {
    index: u16,
    function: Arc<dyn PciFunction>,
    /// `None` behind the last bus.
    requester: Option<RequesterId>,
    shares: Vec<Share>,
}

/// A virtual function's share of a BAR. The bus may have what answers there long after it was removed, so it has it weakly: what the
/// device uses is free when the function ends.
struct Share {
    bar: VfBarLayout,
    region: DecodedRegion,
    _device: Arc<dyn BusDevice>,
}

/// What answers as long as the function exists.
struct Answer(Weak<dyn BusDevice>);

impl BusDevice for Answer {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let device = self.0.upgrade();
        device
            .ok_or(AccessError::NoRegister { offset })?
            .read(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let device = self.0.upgrade();
        device
            .ok_or(AccessError::NoRegister { offset })?
            .write(offset, data)
    }
}

impl Live {
    fn set_place(&mut self, layout: &Layout, physical: RequesterId, upstream: bool) {
        let id = vf_requester(
            physical,
            layout.first_vf_offset,
            layout.vf_stride,
            self.index,
        );
        self.requester = id.ok();
        if let Some(requester) = self.requester {
            self.function.set_requester(requester);
        }
        self.function
            .set_upstream(upstream && self.requester.is_some());
    }

    fn decode(&self, registers: &Registers) {
        for Share { bar, region, .. } in &self.shares {
            region.place(share(registers, bar, self.index));
        }
    }
}

impl PhysicalFunction {
    /// The function that `builder` describes, with ARI and SR-IOV behind its own extended capabilities. The virtual functions' BARs are
    /// placed by `decoder`.
    pub fn new(
        builder: ConfigBuilder,
        layout: Layout,
        factory: Box<dyn VfFactory>,
        decoder: &Arc<Decoder>,
    ) -> Result<Arc<Self>, PhysicalError> {
        layout.check()?;
        let registers = Arc::new(SriovRegisters::new(layout));
        let config = builder
            .capability(Capability::alternative_routing(0))
            .capability(registers.capability().handler(registers.clone()))
            .build(decoder)?;
        Ok(Arc::new(Self {
            config,
            registers,
            factory,
            decoder: Arc::clone(decoder),
            applied: Mutex::default(),
            place: RwLock::new(Place {
                requester: RequesterId::default(),
                upstream: true,
                functions: Vec::new(),
                missing: Vec::new(),
            }),
        }))
    }

    /// Its configuration space, for doorbells on its BARs. To be restored by [`restore`](Self::restore) only.
    pub fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    /// The virtual functions that exist, with their numbers from 0: for their owner to save and restore.
    pub fn virtual_functions(&self) -> Vec<(u16, Arc<dyn PciFunction>)> {
        let live = self.place();
        let functions = live.functions.iter();
        functions
            .map(|live| (live.index, Arc::clone(&live.function)))
            .collect()
    }

    /// The virtual functions that should exist and could not be made, and why.
    pub fn missing(&self) -> Vec<(u16, Arc<dyn Error + Send + Sync>)> {
        self.place().missing.clone()
    }

    /// Saves its registers. The virtual functions are saved by their owner.
    pub fn save(&self) -> ConfigSpaceState {
        self.config.save()
    }

    /// Takes over saved registers. Those virtual functions exist afterwards that the registers say, all new. Refuses, and
    /// changes nothing, if no sequence of writes leads to the registers.
    pub fn restore(&self, state: &ConfigSpaceState) -> Result<(), ConfigStateError> {
        let mut applied = self.applied();
        self.config.restore(state)?;
        self.disable();
        *applied = None;
        self.apply(&mut applied);
        Ok(())
    }

    /// Makes the virtual functions agree with the registers.
    fn apply(&self, applied: &mut Option<Registers>) {
        let registers = self.registers.current();
        if applied.replace(registers) == Some(registers) {
            return;
        }
        let control = Control::from_bits_truncate(registers.control.get());
        let wanted = if control.contains(Control::VF_ENABLE) {
            registers.num_vfs.get()
        } else {
            0
        };
        let exist = {
            let place = self.place();
            place.functions.len() + place.missing.len()
        };
        if exist != 0 && wanted == 0 {
            self.disable();
        } else if exist == 0 && wanted != 0 {
            self.enable(wanted);
        }
        for live in &self.place().functions {
            live.decode(&registers);
        }
    }

    fn enable(&self, count: u16) {
        let mut functions = Vec::new();
        let mut missing = Vec::new();
        for index in 0..count {
            match self.create(index) {
                Ok(live) => functions.push(live),
                Err(error) => missing.push((index, error.into())),
            }
        }
        let mut place = self.place_mut();
        for live in &mut functions {
            live.set_place(self.registers.layout(), place.requester, place.upstream);
        }
        place.functions = functions;
        place.missing = missing;
    }

    fn create(&self, index: u16) -> Result<Live, Box<dyn Error + Send + Sync>> {
        let made = self.factory.create(index)?;
        let layout = self.registers.layout();
        let mut shares = Vec::new();
        for VfShare {
            bar: register,
            device,
            doorbells,
        } in made.shares
        {
            let Some(bar) = layout.bars.iter().find(|bar| bar.index == register) else {
                continue;
            };
            let name = format!("VF {index} BAR {register}");
            let answer = Arc::new(Answer(Arc::downgrade(&device)));
            let region = self.decoder.region(bar.kind, bar.size, &name, answer)?;
            let bus = self.decoder.bus(region.space());
            for (offset, doorbell) in doorbells {
                bus.add_doorbell(region.id(), offset, doorbell)?;
            }
            shares.push(Share {
                bar: *bar,
                region,
                _device: device,
            });
        }
        Ok(Live {
            index,
            function: made.function,
            requester: None,
            shares,
        })
    }

    fn disable(&self) {
        let functions = {
            let mut place = self.place_mut();
            place.missing.clear();
            std::mem::take(&mut place.functions)
        };
        for live in functions {
            live.function.reset();
        }
    }

    fn applied(&self) -> MutexGuard<'_, Option<Registers>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> RwLockReadGuard<'_, Place> {
        self.place.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn place_mut(&self) -> RwLockWriteGuard<'_, Place> {
        self.place.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn move_to(&self, change: impl FnOnce(&mut Place)) {
        let mut place = self.place_mut();
        change(&mut place);
        let Place {
            requester,
            upstream,
            functions,
            ..
        } = &mut *place;
        for live in functions {
            live.set_place(self.registers.layout(), *requester, *upstream);
        }
    }
}

impl PciFunction for PhysicalFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.read_config(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut applied = self.applied();
        self.config.write_config(offset, data);
        self.apply(&mut applied);
    }

    fn set_requester(&self, requester: RequesterId) {
        self.config.set_requester(requester);
        self.move_to(|place| place.requester = requester);
    }

    fn set_upstream(&self, forwarded: bool) {
        self.config.set_upstream(forwarded);
        self.move_to(|place| place.upstream = forwarded);
    }

    fn reset(&self) {
        let mut applied = self.applied();
        self.config.reset();
        self.apply(&mut applied);
    }

    fn behind(&self, id: RequesterId) -> Option<Arc<dyn PciFunction>> {
        let place = self.place();
        let mut functions = place.functions.iter();
        let live = functions.find(|live| live.requester == Some(id))?;
        Some(Arc::clone(&live.function))
    }
}
