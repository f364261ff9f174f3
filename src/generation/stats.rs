//! Where the time of decoding went.

use std::time::Duration;

/// What [`Generator::run`](super::Generator::run) did, and how long each part took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DecodeStats {
    pub num_images: u64,
    pub num_captions: u64,
    /// As captions count them, [SEP] included.
    pub num_tokens: u64,
    /// Batches of prefixes run through the decoder, and the prefixes in them.
    pub num_prefills: u64,
    pub num_prefixes: u64,
    /// Steps of the decoder, and the rows in them: `num_row_steps / num_steps` is how full the batch was.
    pub num_steps: u64,
    pub num_row_steps: u64,
    /// Rows copied because others finished or beams moved.
    pub num_moved_rows: u64,
    /// The decoder: prefixes, steps, and moving rows.
    pub prefill_time: Duration,
    pub step_time: Duration,
    pub gather_time: Duration,
    /// Choosing tokens from logits.
    pub choose_time: Duration,
    /// Waiting for the caller's images, and for it to take the finished ones.
    pub source_time: Duration,
    pub sink_time: Duration,
}
