//! Tasks on a worker's loop.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::mpsc::{Sender, channel};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_devices::Worker;
use vmm_sys_util::eventfd::EventFd;

struct Counter {
    kick: EventFd,
    seen: u64,
    told: Sender<u64>,
}

impl MutEventSubscriber for Counter {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.seen += self.kick.read().unwrap();
        let _ = self.told.send(self.seen);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        ops.add(Events::new(&self.kick, EventSet::IN)).unwrap();
    }
}

#[test]
fn a_removed_task_comes_back_and_runs_no_more() {
    let worker = Worker::spawn("test").unwrap();
    let kick = EventFd::new(0).unwrap();
    let (told, heard) = channel();
    let counter = Counter {
        kick: kick.try_clone().unwrap(),
        seen: 0,
        told,
    };
    let task = worker.add(counter).unwrap();
    kick.write(3).unwrap();
    assert_eq!(heard.recv().unwrap(), 3);

    let counter = task.remove().unwrap();
    assert_eq!(counter.seen, 3);
    kick.write(1).unwrap();
    drop(worker);
    assert!(heard.try_recv().is_err());

    // The same task can move to another worker, and its pending event is served there.
    let worker = Worker::spawn("test2").unwrap();
    let task = worker.add(counter).unwrap();
    assert_eq!(heard.recv().unwrap(), 4);
    // Dropping the worker handle leaves the thread to its tasks; dropping the last task ends it.
    drop(worker);
    kick.write(1).unwrap();
    assert_eq!(heard.recv().unwrap(), 5);
    drop(task);
    assert!(heard.recv().is_err());
}
