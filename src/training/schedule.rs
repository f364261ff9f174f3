//! Learning rates by step, as transformers' `get_*_schedule_with_warmup` make them.

use serde::{Deserialize, Serialize};

/// What the learning rate does after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// In a straight line to 0 at the last step.
    #[default]
    Linear,
    Constant,
    /// Half a cosine to 0 at the last step.
    Cosine,
}

named!(Decay, "a schedule", Linear = "linear", Constant = "constant", Cosine = "cosine");

/// A learning rate for every step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub peak: f64,
    pub warmup_steps: u64,
    pub total_steps: u64,
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of the optimizer step that follows `steps_done` others. With a warm-up, the first step's is 0, as transformers
    /// has it.
    pub fn learning_rate(&self, steps_done: u64) -> f64 {
        if steps_done < self.warmup_steps {
            return self.peak * (steps_done as f64 / self.warmup_steps as f64);
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let factor = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => (self.total_steps.saturating_sub(steps_done) as f64 / span).max(0.0),
            Decay::Cosine => {
                let progress = ((steps_done - self.warmup_steps) as f64 / span).min(1.0);
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        };
        self.peak * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(decay: Decay) -> Vec<f64> {
        let schedule = Schedule { peak: 2e-3, warmup_steps: 3, total_steps: 10, decay };
        (0..12).map(|step| schedule.learning_rate(step)).collect()
    }

    fn assert_close(found: &[f64], wanted: &[f64]) {
        assert!(found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
    }

    #[test]
    fn schedules_are_those_of_transformers() {
        // transformers 5.24, get_linear_schedule_with_warmup(optimizer, 3, 10) and get_cosine_schedule_with_warmup at lr 2e-3.
        let warmup = [0.0, 6.666_666_667e-4, 1.333_333_333e-3];
        let linear = [
            2e-3,
            1.714_285_714e-3,
            1.428_571_429e-3,
            1.142_857_143e-3,
            8.571_428_571e-4,
            5.714_285_714e-4,
            2.857_142_857e-4,
            0.0,
            0.0,
        ];
        assert_close(&rates(Decay::Linear), &[&warmup[..], &linear].concat());
        assert_close(&rates(Decay::Constant), &[&warmup[..], &[2e-3; 9]].concat());
        let cosine = [
            2e-3,
            1.900_968_868e-3,
            1.623_489_802e-3,
            1.222_520_934e-3,
            7.774_790_660e-4,
            3.765_101_981e-4,
            9.903_113_209e-5,
            0.0,
            0.0,
        ];
        assert_close(&rates(Decay::Cosine), &[&warmup[..], &cosine].concat());
    }

    #[test]
    fn no_warmup_starts_at_the_peak_and_a_long_one_never_divides_by_zero() {
        let schedule = |warmup_steps, total_steps| Schedule { peak: 1.0, warmup_steps, total_steps, decay: Decay::Linear };
        assert_eq!(schedule(0, 4).learning_rate(0), 1.0);
        assert_eq!(schedule(5, 5).learning_rate(4), 0.8);
        assert!((0..20).all(|step| schedule(10, 5).learning_rate(step).is_finite()));
    }
}
