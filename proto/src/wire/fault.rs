//! [`Fault`] <-> `tonic::Status`.

use std::time::Duration;

use prost::Message as _;
use tonic::{Code, Status};

use crate::fault::{Fault, FaultCode};
use crate::pb;

const fn grpc_code(code: FaultCode) -> Code {
    match code {
        FaultCode::InvalidRequest => Code::InvalidArgument,
        FaultCode::ContextLengthExceeded => Code::OutOfRange,
        FaultCode::ModelNotFound => Code::NotFound,
        FaultCode::StaleEpoch => Code::FailedPrecondition,
        FaultCode::Overloaded => Code::ResourceExhausted,
        FaultCode::Draining | FaultCode::Unavailable => Code::Unavailable,
        FaultCode::DeadlineExceeded => Code::DeadlineExceeded,
        FaultCode::Cancelled => Code::Cancelled,
        FaultCode::Numerical => Code::DataLoss,
        FaultCode::Internal => Code::Internal,
    }
}

/// The status that carries `fault`.
pub fn to_status(fault: &Fault) -> Status {
    let detail = pb::FaultDetail {
        code: fault.code.as_str().to_owned(),
        param: fault.param.clone().unwrap_or_default(),
        retry_after_ms: fault
            .retry_after
            .map_or(0, |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
    };
    Status::with_details(grpc_code(fault.code), &fault.message, detail.encode_to_vec().into())
}

/// The fault that `status` carries, or the nearest one when it comes from the transport.
pub fn from_status(status: &Status) -> Fault {
    let detail = pb::FaultDetail::decode(status.details()).unwrap_or_default();
    let code = FaultCode::ALL
        .into_iter()
        .find(|code| code.as_str() == detail.code)
        .unwrap_or_else(|| from_grpc_code(status.code()));
    Fault {
        code,
        message: status.message().to_owned(),
        param: (!detail.param.is_empty()).then_some(detail.param),
        retry_after: (detail.retry_after_ms > 0)
            .then(|| Duration::from_millis(detail.retry_after_ms)),
    }
}

const fn from_grpc_code(code: Code) -> FaultCode {
    match code {
        Code::InvalidArgument => FaultCode::InvalidRequest,
        Code::NotFound => FaultCode::ModelNotFound,
        Code::FailedPrecondition => FaultCode::StaleEpoch,
        Code::ResourceExhausted => FaultCode::Overloaded,
        Code::DeadlineExceeded => FaultCode::DeadlineExceeded,
        Code::Cancelled => FaultCode::Cancelled,
        // A connection that breaks shows up as one of these.
        Code::Unavailable | Code::Unknown | Code::Aborted => FaultCode::Unavailable,
        Code::Ok
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => FaultCode::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_survives_the_wire() {
        for code in FaultCode::ALL {
            let fault = Fault::new(code, "prompt has 9 tokens, at most 8 fit")
                .with_param("prompt")
                .with_retry_after(Duration::from_millis(1500));
            assert_eq!(from_status(&to_status(&fault)), fault);
        }
    }

    #[test]
    fn a_status_without_details_maps_by_its_code() {
        let fault = from_status(&Status::unavailable("tcp connect error"));
        assert_eq!(fault, Fault::new(FaultCode::Unavailable, "tcp connect error"));
    }
}
