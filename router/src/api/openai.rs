//! OpenAI's wire types: bodies read field by field, answers written byte by byte.
//!
//! Deliberately absent: HTTP, and anything that waits.

pub(crate) mod answer;
pub(crate) mod chat_answer;
pub(crate) mod chat_request;
pub(crate) mod completion_answer;
pub(crate) mod completion_request;
pub(crate) mod fields;
pub(crate) mod json;
pub(crate) mod messages;
pub(crate) mod parameters;
