use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sriov_vfio::vfio::{RegionIndex, VfioDevice};

use crate::engine::Physical;
use crate::language::Kind;
use crate::model::Space;

/// The device as the model needs it: its spaces are BARs.
pub(crate) struct Regions {
    device: Arc<dyn VfioDevice>,
    /// For each space, where the device has it: a model may know the same registers in two places.
    bars: Vec<Vec<u8>>,
    /// A reset failed: what the device does is not what the model believes.
    lost: AtomicBool,
}

impl Regions {
    /// None if the device has no BAR for a space, or only smaller ones; then which space.
    pub fn new(device: Arc<dyn VfioDevice>, spaces: &[Space]) -> Result<Self, &Space> {
        let bars = |space: &Space| {
            let places = space.places.iter();
            let bars = places.filter_map(|(kind, bar)| bar.filter(|_| *kind != Kind::Config));
            let fits = |bar: &u8| device.region(RegionIndex::Bar(*bar)).size >= space.size;
            bars.filter(fits).collect::<Vec<_>>()
        };
        let bars: Vec<_> = spaces.iter().map(bars).collect();
        match bars.iter().zip(spaces).find(|(bars, _)| bars.is_empty()) {
            Some((_, space)) => Err(space),
            None => Ok(Self {
                device,
                bars,
                lost: AtomicBool::new(false),
            }),
        }
    }

    /// The numbers of the BARs, with their spaces.
    pub fn bars(&self) -> impl Iterator<Item = (u8, u8)> + '_ {
        let spaces = self.bars.iter().zip(0u8..);
        spaces.flat_map(|(bars, space)| bars.iter().map(move |bar| (*bar, space)))
    }

    /// Whether a reset failed.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn bar(&self, space: u8) -> Option<RegionIndex> {
        let bars = self.bars.get(usize::from(space))?;
        bars.first().copied().map(RegionIndex::Bar)
    }
}

impl Physical for Regions {
    fn read(&self, space: u8, offset: u64, width: u8) -> u64 {
        let mut word = [0; 8];
        let part = word.get_mut(..width.into()).zip(self.bar(space));
        let read = part.is_some_and(|(part, bar)| self.device.read(bar, offset, part).is_ok());
        // As where nothing answers.
        let ones = u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 8)));
        if read { u64::from_le_bytes(word) } else { ones }
    }

    fn write(&self, space: u8, offset: u64, width: u8, value: u64) {
        let word = value.to_le_bytes();
        if let Some((part, bar)) = word.get(..width.into()).zip(self.bar(space)) {
            // As where nothing listens.
            let _refused = self.device.write(bar, offset, part);
        }
    }

    fn reset(&self) {
        let lost = self.device.reset().is_err();
        self.lost.store(lost, Ordering::Release);
    }
}
