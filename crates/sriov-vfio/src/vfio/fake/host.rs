use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, Weak};

use super::{FakeDevice, FakeDmaSpace, lock};
use crate::sysfs::PciAddress;
use crate::vfio::device::VfioDevice;
use crate::vfio::memory::HostMemory;
use crate::vfio::open::OpenError;
use crate::vfio::space::{Access, DmaSpace, VfioHost, VfioSpace};
use crate::vfio::token::VfToken;

/// A host that gives functions to user space in one of the two ways that there are, and remembers what it was asked, by the names of ioctls.
pub struct FakeHost {
    iommufd: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    functions: BTreeMap<PciAddress, Given>,
    /// The space that each group is in.
    groups: BTreeMap<u32, Weak<FakeSpace>>,
    spaces: u32,
    calls: Vec<String>,
}

#[derive(Clone)]
struct Given {
    group: u32,
    device: Arc<FakeDevice>,
    /// If it is a virtual function of a physical one that user space has too.
    physical: Option<Arc<FakeDevice>>,
}

impl FakeHost {
    /// One that gives a function away by its group, which is put into a container.
    pub fn by_groups() -> Arc<Self> {
        Self::new(false)
    }

    /// One that gives a function away by a file of its own, which is bound to an iommufd and attached to one of its spaces (Linux,
    /// linux/iommufd.h).
    pub fn by_iommufd() -> Arc<Self> {
        Self::new(true)
    }

    fn new(iommufd: bool) -> Arc<Self> {
        Arc::new(Self {
            iommufd,
            state: Mutex::default(),
        })
    }

    /// Adds a function of an IOMMU group. A virtual one of `physical`, if that is given away too, is opened by those only who name the
    /// token that was set there.
    pub fn add(
        &self,
        function: PciAddress,
        group: u32,
        device: &Arc<FakeDevice>,
        physical: Option<&Arc<FakeDevice>>,
    ) {
        let given = Given {
            group,
            device: Arc::clone(device),
            physical: physical.cloned(),
        };
        lock(&self.state).functions.insert(function, given);
    }

    /// What was asked since the last time that this was, in its order.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state).calls)
    }

    fn call(&self, call: String) {
        lock(&self.state).calls.push(call);
    }
}

impl VfioHost for Arc<FakeHost> {
    fn space(&self) -> Result<Arc<dyn VfioSpace>, OpenError> {
        let mut state = lock(&self.state);
        state.spaces += 1;
        let number = state.spaces;
        if self.iommufd {
            state.calls.push(format!("IOMMU_IOAS_ALLOC {number}"));
        }
        Ok(Arc::new(FakeSpace {
            host: Arc::clone(self),
            number,
            memory: FakeDmaSpace::default(),
        }))
    }
}

/// A container, or a space of an iommufd.
struct FakeSpace {
    host: Arc<FakeHost>,
    number: u32,
    memory: FakeDmaSpace,
}

impl FakeSpace {
    /// Puts a group into this space; whether it is the first.
    fn take(self: &Arc<Self>, group: u32, function: PciAddress) -> Result<bool, OpenError> {
        let mut state = lock(&self.host.state);
        let own = Arc::downgrade(self);
        let mut spaces = state.groups.values();
        let first = !spaces.any(|space| space.ptr_eq(&own));
        match state
            .groups
            .get(&group)
            .map(|space| (space, space.strong_count()))
        {
            Some((space, 1..)) if !space.ptr_eq(&own) => {
                Err(OpenError::OtherSpace { function, group })
            }
            Some((space, _)) if space.ptr_eq(&own) => Ok(false),
            _ => {
                state.groups.insert(group, own);
                if !self.host.iommufd {
                    state
                        .calls
                        .push(format!("VFIO_GROUP_SET_CONTAINER {group}"));
                }
                Ok(first)
            }
        }
    }

    fn has_functions(&self) -> bool {
        let state = lock(&self.host.state);
        let mut spaces = state.groups.values();
        spaces.any(|space| std::ptr::eq(space.as_ptr(), self))
    }
}

impl VfioSpace for FakeSpace {
    fn open(
        self: Arc<Self>,
        function: PciAddress,
        token: Option<VfToken>,
    ) -> Result<Arc<dyn VfioDevice>, OpenError> {
        let given = lock(&self.host.state).functions.get(&function).cloned();
        let missing = || crate::sysfs::SysfsError::NoFunction(function);
        let Given {
            group,
            device,
            physical,
        } = given.ok_or_else(missing)?;
        let first = self.take(group, function)?;
        let named = token.map_or_else(String::new, |token| format!(" vf_token={token}"));
        match self.host.iommufd {
            false => {
                if first {
                    self.host.call("VFIO_SET_IOMMU".to_owned());
                }
                let call = format!("VFIO_GROUP_GET_DEVICE_FD {function}{named}");
                self.host.call(call);
            }
            true => {
                let call = format!("VFIO_DEVICE_BIND_IOMMUFD {function}{named}");
                self.host.call(call);
            }
        }
        match (physical, token) {
            (Some(physical), token) if token.is_none() || physical.vf_token() != token => {
                return Err(OpenError::Token(function));
            }
            (None, Some(token)) if device.set_vf_token(token).is_err() => {
                return Err(OpenError::NoToken(function));
            }
            _ => {}
        }
        if self.host.iommufd {
            let call = format!("VFIO_DEVICE_ATTACH_IOMMUFD_PT {function} {}", self.number);
            self.host.call(call);
        }
        Ok(device)
    }
}

impl DmaSpace for FakeSpace {
    fn map(&self, iova: u64, memory: &HostMemory, access: Access) -> io::Result<()> {
        let (number, size) = (self.number, memory.size());
        if self.host.iommufd {
            self.host
                .call(format!("IOMMU_IOAS_MAP {number} {iova:#x} {size:#x}"));
        } else if self.has_functions() {
            self.host
                .call(format!("VFIO_IOMMU_MAP_DMA {iova:#x} {size:#x}"));
        } else {
            // A container is of no type yet.
            return Err(ErrorKind::InvalidInput.into());
        }
        self.memory.map(iova, memory, access)
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        let number = self.number;
        self.host.call(match self.host.iommufd {
            true => format!("IOMMU_IOAS_UNMAP {number} {iova:#x} {size:#x}"),
            false => format!("VFIO_IOMMU_UNMAP_DMA {iova:#x} {size:#x}"),
        });
        self.memory.unmap(iova, size)
    }
}
