//! The primitives of the protocol: the real ones, or loom's when the protocol is model-checked.

pub use imp::*;

/// Locks `mutex`. What the bus guards is consistent wherever a panic can pass (in calls out), so a poisoned lock is
/// still good.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(not(loom))]
mod imp {
    pub use std::sync::atomic::{AtomicPtr, Ordering};
    pub use std::sync::{Mutex, MutexGuard};

    use std::io;
    use std::sync::atomic::compiler_fence;
    use std::thread;
    use std::time::Duration;

    /// Tells the kernel that this process will ask for barriers.
    pub fn register_barrier() -> io::Result<()> {
        membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
    }

    /// The reader's half of the barrier: orders nothing but the compiler.
    #[inline(always)]
    pub fn light_barrier() {
        compiler_fence(Ordering::SeqCst);
    }

    /// The writer's half: when it returns, every thread of the process has executed a full barrier since the call.
    pub fn heavy_barrier() -> io::Result<()> {
        membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    }

    fn membarrier(command: libc::c_int) -> io::Result<()> {
        // SAFETY: membarrier(2) takes integers and touches no memory of ours.
        match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Drops a value and frees its memory.
    ///
    /// # Safety
    ///
    /// `value` came from `Box::into_raw`, and nobody uses it any more.
    pub unsafe fn free<T>(value: *mut T) {
        // SAFETY: as the caller says.
        drop(unsafe { Box::from_raw(value) });
    }

    /// Gives other threads time to leave an access; `round` counts how often the caller asked before.
    pub fn pause(round: u32) {
        if round < 16 {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(100));
        }
    }
}

#[cfg(loom)]
mod imp {
    pub use loom::sync::atomic::{AtomicPtr, Ordering};
    pub use loom::sync::{Mutex, MutexGuard};

    use std::io;

    pub fn register_barrier() -> io::Result<()> {
        Ok(())
    }

    // A process-wide barrier beside a compiler fence orders as much as a pair of sequentially consistent fences.

    pub fn light_barrier() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }

    pub fn heavy_barrier() -> io::Result<()> {
        loom::sync::atomic::fence(Ordering::SeqCst);
        Ok(())
    }

    /// Drops a value, and keeps its address from coming back: loom needs runs that are alike.
    ///
    /// # Safety
    ///
    /// As the real one.
    pub unsafe fn free<T>(value: *mut T) {
        // SAFETY: as the caller says.
        unsafe { value.drop_in_place() };
    }

    pub fn pause(_round: u32) {
        loom::thread::yield_now();
    }
}
