//! The whole of generation on a toy decoder: against a naive one-row-at-a-time generator, against transformers, and by itself.

mod errors;
mod golden;
mod hugging_face;
mod naive;
mod schedule;
mod timing;
mod toy;
