//! Where a run's time went, step by step, and which step held it up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Time added up from several threads.
#[derive(Default)]
pub struct Stopwatch(AtomicU64);

impl Stopwatch {
    /// Runs `work` and adds the time it took.
    pub fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.add(start.elapsed());
        result
    }

    pub fn add(&self, time: Duration) {
        self.0.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// The stopwatches of a stage.
#[derive(Default)]
pub struct Stopwatches {
    /// Reading, hashing, image decoding and preprocessing, summed over the reading threads; waiting for cores is left out.
    pub reading: Stopwatch,
    pub encoding: Stopwatch,
    pub decoding: Stopwatch,
    pub writing: Stopwatch,
    /// The model waited for a prepared image.
    pub waiting_for_input: Stopwatch,
    /// The model waited for the writer.
    pub waiting_for_output: Stopwatch,
}

/// Seconds of each step. `reading` and `writing` run beside `encoding` and `decoding`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Timings {
    pub wall_s: f64,
    pub reading_s: f64,
    pub reading_threads: usize,
    pub encoding_s: f64,
    pub decoding_s: f64,
    pub writing_s: f64,
    pub waiting_for_input_s: f64,
    pub waiting_for_output_s: f64,
}

impl Timings {
    /// Of a run that took `wall`.
    pub fn of(watches: &Stopwatches, wall: Duration, reading_threads: usize) -> Self {
        let seconds = |watch: &Stopwatch| watch.total().as_secs_f64();
        Self {
            wall_s: wall.as_secs_f64(),
            reading_s: seconds(&watches.reading),
            reading_threads,
            encoding_s: seconds(&watches.encoding),
            decoding_s: seconds(&watches.decoding),
            writing_s: seconds(&watches.writing),
            waiting_for_input_s: seconds(&watches.waiting_for_input),
            waiting_for_output_s: seconds(&watches.waiting_for_output),
        }
    }

    /// The step to speed up first: reading where the model mostly waited for images, writing where it mostly waited for the writer,
    /// else the larger of encoding and decoding.
    pub fn bottleneck(&self) -> &'static str {
        let model_s = self.encoding_s + self.decoding_s;
        if self.waiting_for_output_s > model_s && self.waiting_for_output_s > self.waiting_for_input_s {
            "writing the output"
        } else if self.waiting_for_input_s > model_s {
            "reading images"
        } else if self.decoding_s > self.encoding_s {
            "writing captions"
        } else {
            "encoding images"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bottleneck_is_what_the_model_waited_for_or_did() {
        let base = Timings {
            wall_s: 10.0,
            reading_s: 9.0,
            reading_threads: 2,
            encoding_s: 4.0,
            decoding_s: 5.0,
            writing_s: 0.1,
            waiting_for_input_s: 0.5,
            waiting_for_output_s: 0.0,
        };
        assert_eq!(base.bottleneck(), "writing captions");
        assert_eq!(Timings { encoding_s: 6.0, ..base }.bottleneck(), "encoding images");
        assert_eq!(Timings { waiting_for_input_s: 20.0, ..base }.bottleneck(), "reading images");
        assert_eq!(Timings { waiting_for_output_s: 20.0, ..base }.bottleneck(), "writing the output");
    }
}
