//! Shared rings (`io/ring.h`).

/// Bytes before the first slot: the four indices and padding.
pub const HEADER: usize = 64;
/// Requests that the front end has made, 32 bits, as are the others.
pub const REQUESTS: usize = 0;
/// The front end notifies the back end of this request.
pub const REQUEST_EVENT: usize = 4;
/// Responses that the back end has made.
pub const RESPONSES: usize = 8;
/// The back end notifies the front end of this response.
pub const RESPONSE_EVENT: usize = 12;
