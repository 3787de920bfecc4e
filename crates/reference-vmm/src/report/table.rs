use std::fmt;

use super::{Report, cycles};

/// The table of the literature: type, number, cycles for each.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        row(f, "exit to user space", "number", "cycles/exit")?;
        for exits in &self.user {
            let (number, each) = (grouped(exits.count), grouped(exits.cycles_per_exit));
            row(f, &exits.kind.to_string(), &number, &each)?;
        }
        row(f, "total", &grouped(self.user_total()), "")?;
        let regions = || self.buses.iter().flat_map(|bus| &bus.regions);
        if regions().next().is_some() {
            writeln!(f)?;
            row(f, "device", "accesses", "cycles/access")?;
            for region in regions() {
                let accesses = region.reads.saturating_add(region.writes);
                let each = cycles(region.times.total, self.tsc_khz) / accesses.max(1);
                row(f, &region.name, &grouped(accesses), &grouped(each))?;
            }
        }
        let unclaimed: u64 = self.buses.iter().map(|bus| bus.unclaimed).sum();
        if unclaimed > 0 {
            row(f, "(no device)", &grouped(unclaimed), "")?;
        }
        if let Some(sidecore) = &self.sidecore {
            writeln!(f)?;
            row(f, "sidecore", "number", "")?;
            row(f, "register writes found", &grouped(sidecore.writes), "")?;
            row(f, "looks", &grouped(sidecore.polls), "")?;
            let share = format!("{:.1} %", 100.0 * sidecore.busy_share);
            row(f, "time with work", &share, "")?;
        }
        for model in &self.models {
            writeln!(f)?;
            row(
                f,
                &format!("{} as {}", model.function, model.model),
                "number",
                "",
            )?;
            row(f, "accesses", &grouped(model.accesses), "")?;
            row(f, "hooked", &grouped(model.hooked), "")?;
            row(f, "denied", &grouped(model.denied), "")?;
            row(f, "interrupts", &grouped(model.interrupts), "")?;
        }
        if !self.kernel.is_empty() {
            writeln!(f)?;
            row(f, "counted by KVM", "number", "")?;
            for counter in &self.kernel {
                row(f, &counter.name, &grouped(counter.count), "")?;
            }
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, what: &str, number: &str, each: &str) -> fmt::Result {
    let line = format!("{what:<32} {number:>14} {each:>14}");
    writeln!(f, "{}", line.trim_end())
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_from_the_right() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(363_000_000), "363,000,000");
    }
}
