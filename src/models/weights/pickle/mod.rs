//! A pickle machine that builds data and nothing else.
//!
//! A pickle is a small program for a stack machine whose opcodes may name any Python callable and call it. Here a name must be on a
//! short list (rebuilding tensors, ordered dictionaries, storages, TorchScript's own classes); each has a meaning built in, nothing is
//! looked up and nothing is run. Any other name is refused, and the message says which it was.
//!
//! Objects live in one arena and refer to each other by number, so cycles and deep nesting cost nothing to hold or to drop. Every
//! opcode reads at least one byte and makes a bounded number of objects: memory stays proportional to the pickle, whose length is bounded.

mod arena;
mod globals;
mod machine;
mod reader;

#[cfg(test)]
pub(super) use arena::Storage;
pub(super) use arena::{Arena, Id, Object, Tensor};
pub(super) use machine::load;
pub(super) use reader::PickleReader;

/// Why a pickle was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum PickleError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("the pickle is cut short")]
    CutShort,
    #[error("the pickle is longer than {0} bytes, which no state_dict needs")]
    TooLong(u64),
    #[error(
        "the pickle names {0}, which is not on the list of what weights are made of; nothing was run. \
         Save a plain state_dict (or safetensors) and import that"
    )]
    Refused(String),
    #[error("malformed pickle at byte {at}: {problem}")]
    Malformed { at: u64, problem: String },
}

#[cfg(test)]
mod tests;
