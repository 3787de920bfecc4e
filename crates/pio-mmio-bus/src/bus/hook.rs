use std::fmt;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// Why an access waits: an eventfd that becomes readable when the access is worth making again.
///
/// A vCPU thread parks by polling it together with whatever else may kick it. Several may wait for one suspension, so
/// only its owner, the hook, ever reads the eventfd.
#[derive(Clone)]
pub struct Suspension(Arc<EventFd>);

impl Suspension {
    /// A suspension that is over when `eventfd` becomes readable.
    pub fn new(eventfd: Arc<EventFd>) -> Self {
        Self(eventfd)
    }

    /// What to poll for reading.
    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }
}

/// The same eventfd.
impl PartialEq for Suspension {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Suspension {}

impl fmt::Debug for Suspension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Suspension").finish_non_exhaustive()
    }
}
