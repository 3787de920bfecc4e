//! The MC146818 real-time clock (Motorola MC146818A data sheet), read-only: it shows the host's time in UTC.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use pio_mmio_bus::bus::{AccessError, BusDevice};

/// First port: the index; the next one is the data.
pub const BASE: u16 = 0x70;
/// Number of ports.
pub const SIZE: u16 = 2;
/// Interrupt of the clock. It never raises one, since alarms are not implemented.
pub const IRQ: u32 = 8;
/// Where the century is kept, as the FADT says.
pub const CENTURY: u8 = 0x32;

/// Register A: oscillator running, 32.768 kHz base, no update in progress.
const REGISTER_A: u8 = 0x26;
/// Register B: 24-hour clock, binary-coded decimal.
const REGISTER_B: u8 = 0x02;
/// Register D: the time is valid.
const REGISTER_D: u8 = 0x80;

/// A moment on the calendar, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Calendar {
    second: u64,
    minute: u64,
    hour: u64,
    /// Sunday is 1.
    weekday: u64,
    day: u64,
    month: u64,
    year: u64,
}

impl Calendar {
    /// Seconds since 1970 to a date of the Gregorian calendar, by counting years from 1 March so that the leap
    /// day comes last (400 years are 146,097 days).
    fn from_unix(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let shifted = days + 719_468; // since 0000-03-01
        let era = shifted / 146_097;
        let of_era = shifted % 146_097;
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        Self {
            second: seconds % 60,
            minute: seconds / 60 % 60,
            hour: seconds / 3600 % 24,
            weekday: (days + 4) % 7 + 1,
            day: of_year - (153 * march_month + 2) / 5 + 1,
            month,
            year: era * 400 + year_of_era + u64::from(month <= 2),
        }
    }
}

/// The clock.
#[derive(Debug, Default)]
pub struct Cmos {
    index: AtomicU8,
}

impl Cmos {
    fn register(&self) -> u8 {
        // A clock set before 1970 shows 1970.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = Calendar::from_unix(now.as_secs());
        let index = self.index.load(Ordering::Relaxed) & 0x7f;
        match index {
            0x00 => bcd(now.second),
            0x02 => bcd(now.minute),
            0x04 => bcd(now.hour),
            0x06 => bcd(now.weekday),
            0x07 => bcd(now.day),
            0x08 => bcd(now.month),
            0x09 => bcd(now.year % 100),
            0x0a => REGISTER_A,
            0x0b => REGISTER_B,
            0x0d => REGISTER_D,
            CENTURY => bcd(now.year / 100),
            _ => 0,
        }
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match (offset, data) {
            (1, [value]) => *value = self.register(),
            (0, [value]) => *value = 0xff, // write-only on a PC
            (_, data) => {
                let width = data.len();
                return Err(AccessError::Width { offset, width });
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match (offset, data) {
            (0, [index]) => self.index.store(*index, Ordering::Relaxed),
            (1, [_]) => {}
            _ => {
                let width = data.len();
                return Err(AccessError::Width { offset, width });
            }
        }
        Ok(())
    }
}

/// A number below 100 in binary-coded decimal.
fn bcd(value: u64) -> u8 {
    u8::try_from(value / 10 % 10 * 16 + value % 10).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(seconds: u64) -> (u64, u64, u64, u64) {
        let calendar = Calendar::from_unix(seconds);
        (
            calendar.year,
            calendar.month,
            calendar.day,
            calendar.weekday,
        )
    }

    #[test]
    fn calendar_knows_leap_days() {
        assert_eq!(date(0), (1970, 1, 1, 5)); // a Thursday
        assert_eq!(date(951_782_400), (2000, 2, 29, 3));
        assert_eq!(date(951_868_800), (2000, 3, 1, 4));
        assert_eq!(date(1_709_164_800), (2024, 2, 29, 5));
        assert_eq!(date(4_107_542_400), (2100, 3, 1, 2)); // 2100 is no leap year
    }

    #[test]
    fn calendar_follows_every_day_of_four_centuries() {
        let mut previous = Calendar::from_unix(0);
        for day in 1..146_097 {
            let next = Calendar::from_unix(day * 86_400);
            let expected = (previous.month, previous.day + 1);
            let new_month =
                next.day == 1 && (next.month == previous.month % 12 + 1) && previous.day >= 28;
            assert!(
                (next.month, next.day) == expected || new_month,
                "{previous:?} {next:?}"
            );
            assert_eq!(next.weekday, previous.weekday % 7 + 1);
            previous = next;
        }
        assert_eq!(previous.year, 2369);
    }

    #[test]
    fn registers_are_plausible() {
        let cmos = Cmos::default();
        let read = |index: u8| {
            cmos.write(0, &[index]).unwrap();
            let mut value = [0];
            cmos.read(1, &mut value).unwrap();
            value[0]
        };
        assert_eq!(read(0x0d), REGISTER_D);
        assert_eq!(
            read(0x80 | 0x0b),
            REGISTER_B,
            "the NMI mask is not part of the index"
        );
        for index in [0, 2, 4, 6, 7, 8, 9, CENTURY] {
            let value = read(index);
            assert!(
                value & 0xf < 10 && value >> 4 < 10,
                "{index:#x}: {value:#x}"
            );
        }
    }
}
