//! Looking for work for a moment before a queue sleeps, which is cheaper than to be woken if the driver is about to make some available.

/// How many looks a queue takes.
#[derive(Debug)]
pub(crate) struct Polling {
    most: u32,
    /// As many as are taken next: few where the last ones found nothing.
    next: u32,
    left: u32,
}

impl Polling {
    /// Of at most `most` looks at a time.
    pub(crate) fn new(most: u32) -> Self {
        Self {
            most,
            next: most,
            left: most,
        }
    }

    /// Whether it is time to sleep.
    pub(crate) fn is_over(&self) -> bool {
        self.left == 0
    }

    /// A look found work.
    pub(crate) fn found(&mut self) {
        self.next = self.most;
        self.left = self.most;
    }

    /// A look found nothing.
    pub(crate) fn missed(&mut self) {
        self.left = self.left.saturating_sub(1);
        std::hint::spin_loop();
    }

    /// The queue sleeps.
    pub(crate) fn give_up(&mut self) {
        self.next = (self.next / 2).max(self.most / 16);
        self.left = self.next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks until the time is over, or `needed` of them found something; how many were taken.
    fn looks(polling: &mut Polling, needed: u32) -> u32 {
        let mut taken = 0;
        while !polling.is_over() {
            taken += 1;
            if taken == needed {
                polling.found();
                return taken;
            }
            polling.missed();
        }
        polling.give_up();
        taken
    }

    #[test]
    fn looks_become_few_where_they_find_nothing_and_many_again() {
        let mut polling = Polling::new(64);
        let taken: Vec<u32> = (0..6).map(|_| looks(&mut polling, u32::MAX)).collect();
        assert_eq!(taken, [64, 32, 16, 8, 4, 4]);
        assert_eq!(looks(&mut polling, 3), 3);
        assert_eq!(looks(&mut polling, u32::MAX), 64);
    }

    #[test]
    fn none_is_taken_where_none_is_wanted() {
        assert_eq!(looks(&mut Polling::new(0), 1), 0);
    }
}
