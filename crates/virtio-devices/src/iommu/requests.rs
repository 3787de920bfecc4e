use std::sync::Arc;

use iommu_emul::dma::PhysicalMemory;
use iommu_emul::domain::{DomainError, Mapping};
use pio_mmio_bus::pci::RequesterId;
use vring::{Anchor, Chain, Queue, Reader};
use zerocopy::{FromBytes, IntoBytes};

use super::device::Shared;
use super::spec::{
    Attach, AttachFlags, Detach, Features, Head, Map, MapFlags, Probe, ReservedMemory, Status,
    Tail, Unmap, kind,
};
use crate::dma::DmaView;
use crate::serve::{Service, Wait};

/// Requests answered before other queues have their turn.
const BURST: usize = 64;

/// The request queue (§5.13.6).
///
/// A request that takes something away from endpoints is answered when no I/O uses it any more. Until then it is put back, and
/// those after it wait.
pub(super) struct Requests<M: PhysicalMemory> {
    pub shared: Arc<Shared<M>>,
    pub features: Features,
}

/// What became of a request.
enum Outcome {
    /// It is not one: the buffer is given back as it is.
    Unknown,
    /// It is to be answered.
    Done(Status),
    /// It is to be answered when the guards are gone that are older.
    Removed(Status),
    /// It is to be answered with properties.
    Probed(Status, Vec<u8>),
}

fn read<T: FromBytes + IntoBytes, H: Anchor>(reader: &mut Reader<'_, H>) -> Option<T> {
    let mut request = T::new_zeroed();
    reader.read_exact(request.as_mut_bytes()).ok()?;
    Some(request)
}

/// The endpoint with this identifier, which is its requester ID.
fn endpoint(id: u32) -> Result<RequesterId, Status> {
    u16::try_from(id)
        .map(RequesterId)
        .map_err(|_| Status::NoEnt)
}

fn status(error: &DomainError) -> Status {
    match error {
        DomainError::NoEndpoint(_) | DomainError::NoDomain(_) => Status::NoEnt,
        DomainError::DomainRange(_) | DomainError::Range(_) | DomainError::Split(_) => {
            Status::Range
        }
        DomainError::Bypass(_)
        | DomainError::NotAttached { .. }
        | DomainError::Reserved(_)
        | DomainError::Mapped(_) => Status::Inval,
        DomainError::Physical { .. } => Status::Fault,
        DomainError::Full(_) => Status::NoMem,
        _ => Status::DevErr,
    }
}

impl<M: PhysicalMemory> Requests<M> {
    /// Carries out the request in `chain`, each byte of which is read once.
    fn execute<H: Anchor>(&self, chain: &Chain<H>) -> Outcome {
        let mut reader = chain.reader();
        if chain.writable_len() < size_of::<Tail>() as u64 {
            return Outcome::Unknown;
        }
        let has = |feature| self.features.contains(feature);
        let head: Option<Head> = read(&mut reader);
        let outcome = match head.map(|head| head.kind) {
            Some(kind::ATTACH) => read(&mut reader).map(|request| self.attach(&request)),
            Some(kind::DETACH) => read(&mut reader).map(|request| self.detach(&request)),
            Some(kind::MAP) if has(Features::MAP_UNMAP) => {
                read(&mut reader).map(|request| self.map(&request))
            }
            Some(kind::UNMAP) if has(Features::MAP_UNMAP) => {
                read(&mut reader).map(|request| self.unmap(&request))
            }
            Some(kind::PROBE) if has(Features::PROBE) => {
                read(&mut reader).map(|request| self.probe(&request, chain.writable_len()))
            }
            _ => None,
        };
        outcome.unwrap_or(Outcome::Unknown)
    }

    fn attach(&self, request: &Attach) -> Outcome {
        let mut known = AttachFlags::empty();
        known.set(
            AttachFlags::BYPASS,
            self.features.contains(Features::BYPASS_CONFIG),
        );
        let flags = AttachFlags::from_bits_retain(request.flags.get());
        if request.reserved != [0; 4] || !known.contains(flags) {
            return Outcome::Done(Status::Inval);
        }
        removed(endpoint(request.endpoint.get()).and_then(|endpoint| {
            let bypass = flags.contains(AttachFlags::BYPASS);
            let attached = self
                .shared
                .domains
                .attach(request.domain.get(), endpoint, bypass);
            attached.map_err(|error| status(&error))
        }))
    }

    fn detach(&self, request: &Detach) -> Outcome {
        removed(endpoint(request.endpoint.get()).and_then(|endpoint| {
            let detached = self.shared.domains.detach(request.domain.get(), endpoint);
            detached.map_err(|error| status(&error))
        }))
    }

    fn map(&self, request: &Map) -> Outcome {
        let mut known = MapFlags::READ | MapFlags::WRITE;
        known.set(MapFlags::MMIO, self.features.contains(Features::MMIO));
        let flags = MapFlags::from_bits_retain(request.flags.get());
        if !known.contains(flags) {
            return Outcome::Done(Status::Inval);
        }
        let mapping = Mapping {
            first: request.virt_start.get(),
            last: request.virt_end.get(),
            physical: request.phys_start.get(),
            read: flags.contains(MapFlags::READ),
            write: flags.contains(MapFlags::WRITE),
        };
        let mapped = self.shared.domains.map(request.domain.get(), mapping);
        Outcome::Done(mapped.map_or_else(|error| status(&error), |()| Status::Ok))
    }

    fn unmap(&self, request: &Unmap) -> Outcome {
        if request.reserved != [0; 4] {
            return Outcome::Done(Status::Inval);
        }
        let range = request.virt_start.get()..=request.virt_end.get();
        let unmapped = self.shared.domains.unmap(request.domain.get(), range);
        removed(unmapped.map_err(|error| status(&error)))
    }

    fn probe(&self, request: &Probe, room: u64) -> Outcome {
        let domains = &self.shared.domains;
        let size = usize::try_from(self.shared.probe_size()).unwrap_or(usize::MAX);
        let wanted = size.saturating_add(size_of::<Tail>());
        // Of a list that is too small for the properties only the tail is known.
        let Some(room) = usize::try_from(room).ok().filter(|room| *room < wanted) else {
            return match endpoint(request.endpoint.get()) {
                Ok(endpoint) if domains.has_endpoint(endpoint) => {
                    Outcome::Probed(Status::Ok, self.shared.properties())
                }
                _ => Outcome::Probed(Status::NoEnt, vec![0; size]),
            };
        };
        let properties = vec![0; room.saturating_sub(size_of::<Tail>())];
        Outcome::Probed(Status::Inval, properties)
    }
}

fn removed(result: Result<(), Status>) -> Outcome {
    match result {
        Ok(()) => Outcome::Removed(Status::Ok),
        Err(status) => Outcome::Done(status),
    }
}

impl<V: DmaView, M: PhysicalMemory> Service<V> for Requests<M> {
    fn serve(
        &mut self,
        queue: &mut Queue<V>,
        memory: &V::M,
        _: bool,
    ) -> Result<Wait, vring::Error> {
        for _ in 0..BURST {
            let Some(chain) = queue.pop(&memory)? else {
                return Ok(Wait::Buffers);
            };
            let outcome = match self.shared.take_pending() {
                Some(status) => Outcome::Removed(status),
                None => self.execute(&chain),
            };
            let (status, properties) = match outcome {
                Outcome::Unknown => {
                    queue.push(chain, 0)?;
                    continue;
                }
                Outcome::Removed(status) if !self.shared.domains.settled() => {
                    self.shared.set_pending(status);
                    queue.put_back(chain)?;
                    return Ok(Wait::Nudge);
                }
                Outcome::Done(status) | Outcome::Removed(status) => (status, Vec::new()),
                Outcome::Probed(status, properties) => (status, properties),
            };
            let tail = Tail {
                status: status as u8,
                reserved: [0; 3],
            };
            let mut writer = chain.writer();
            writer.write(&properties);
            writer.write(tail.as_bytes());
            let written = writer.written();
            queue.push(chain, written)?;
        }
        Ok(Wait::Turn)
    }
}

impl<M: PhysicalMemory> Shared<M> {
    /// The properties of every endpoint: the addresses that cannot be mapped (§5.13.6.6), the doorbell of interrupts first.
    fn properties(&self) -> Vec<u8> {
        let subtypes =
            std::iter::once(ReservedMemory::MSI).chain(std::iter::repeat(ReservedMemory::RESERVED));
        self.domains
            .reserved()
            .zip(subtypes)
            .flat_map(|(range, subtype)| {
                ReservedMemory {
                    kind: ReservedMemory::KIND.into(),
                    length: ReservedMemory::LENGTH.into(),
                    subtype,
                    reserved: [0; 3],
                    start: (*range.start()).into(),
                    end: (*range.end()).into(),
                }
                .as_bytes()
                .to_vec()
            })
            .collect()
    }
}
