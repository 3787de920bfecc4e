use vm_memory::bitmap::WithBitmapSlice;
use vm_memory::{GuestAddressSpace, GuestMemory};

/// A view of guest memory that a worker can serve queues from: an address space that threads may share, down to its guards and its
/// dirty bitmaps. Implemented for all that can.
pub trait DmaView:
    GuestAddressSpace<
        T: Send + Sync,
        M: GuestMemory<Bitmap: for<'a> WithBitmapSlice<'a, S: Send + Sync>>,
    > + Send
    + Sync
    + 'static
{
}

impl<A> DmaView for A where
    A: GuestAddressSpace<
            T: Send + Sync,
            M: GuestMemory<Bitmap: for<'a> WithBitmapSlice<'a, S: Send + Sync>>,
        > + Send
        + Sync
        + 'static
{
}
