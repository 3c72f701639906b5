//! The only conversions between messages on the wire and the domain types.
//!
//! Parsing never trusts the peer: a missing field, an unknown enum value or a number out of range is a
//! [`WireError`] that names the field.

mod access;
mod change;
mod fault;
mod member;
pub mod parts;
mod placement;
#[cfg(test)]
mod samples;
mod view;
mod worker;

pub use self::fault::{from_status, to_status};
pub use self::view::view_op_bytes;

use crate::fault::{Fault, FaultCode};

/// A message that does not hold what it must.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message field {field} is missing or not understood")]
pub struct WireError {
    /// The field's name in the .proto.
    pub field: &'static str,
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Self::new(FaultCode::InvalidRequest, error.to_string())
    }
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError { field })
}
