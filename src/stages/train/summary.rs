//! What a run came to, and where the time went.

use std::time::Duration;

use serde::Serialize;

/// Where the time went.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TimeSpent {
    pub data: Duration,
    pub steps: Duration,
    pub logging: Duration,
    pub evaluation: Duration,
    pub saving: Duration,
    pub tokens: u64,
    pub samples: u64,
    pub num_steps: u64,
    pub num_evaluations: u64,
}

/// What a run came to.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub steps: u64,
    pub total_steps: u64,
    pub finished: bool,
    pub train_captions: usize,
    pub dev_captions: usize,
    pub trainable_parameters: usize,
    /// Of the last step.
    pub train_loss: Option<f64>,
    /// Of the last evaluation.
    pub dev_loss: Option<f64>,
    pub best_dev_loss: Option<f64>,
    /// Of greedy captions of some dev images, at the last evaluation.
    pub dev_cider: Option<f64>,
    pub best_dev_cider: Option<f64>,
    pub best_step: Option<u64>,
    /// Of this call, over the time spent in steps, data and logging.
    pub tokens_per_second: f64,
    pub samples_per_second: f64,
    pub seconds: Seconds,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Seconds {
    pub data: f64,
    pub steps: f64,
    pub logging: f64,
    pub evaluation: f64,
    pub saving: f64,
}

impl TimeSpent {
    /// Tokens and samples a second of steps, data and logging.
    pub fn rates(&self) -> (f64, f64) {
        let working = (self.data + self.steps + self.logging).as_secs_f64().max(1e-9);
        (self.tokens as f64 / working, self.samples as f64 / working)
    }

    /// Seconds that so many steps and evaluations more would take; none before a step was made.
    pub fn left(&self, steps: u64, evaluations: u64) -> Option<f64> {
        let each = |spent: Duration, count: u64| spent.as_secs_f64() / count.max(1) as f64;
        (self.num_steps > 0).then(|| {
            each(self.data + self.steps + self.logging, self.num_steps) * steps as f64
                + each(self.evaluation, self.num_evaluations) * evaluations as f64
        })
    }

    pub fn seconds(&self) -> Seconds {
        Seconds {
            data: self.data.as_secs_f64(),
            steps: self.steps.as_secs_f64(),
            logging: self.logging.as_secs_f64(),
            evaluation: self.evaluation.as_secs_f64(),
            saving: self.saving.as_secs_f64(),
        }
    }
}
