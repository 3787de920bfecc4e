use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Threads for operations that block. When the pool is dropped they do what was given to it, and have ended when that returns: nothing
/// keeps the back-end any more.
pub(super) struct Pool {
    /// `None` once it is being dropped.
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Pool {
    /// Starts `threads` threads.
    pub(super) fn spawn(threads: usize) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let thread = || {
            let receiver = Arc::clone(&receiver);
            thread::Builder::new()
                .name("block-io".to_owned())
                .spawn(move || run(&receiver))
        };
        Ok(Self {
            jobs: Some(sender),
            threads: (0..threads).map(|_| thread()).collect::<io::Result<_>>()?,
        })
    }

    /// Runs `job` on one of the threads.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(jobs) = &self.jobs {
            // The receiver lives as long as the threads, and they as long as the sender.
            let _ = jobs.send(Box::new(job));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic of a job was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn run(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_pool_that_is_dropped_has_done_its_work_and_kept_nothing() {
        let done = Arc::new(AtomicU32::new(0));
        let pool = Pool::spawn(2).unwrap();
        for _ in 0..10 {
            let done = Arc::clone(&done);
            pool.run(move || {
                thread::sleep(Duration::from_millis(1));
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        drop(pool);
        assert_eq!(done.load(Ordering::Relaxed), 10);
        assert_eq!(Arc::strong_count(&done), 1);
    }
}
