//! What a run says: at its beginning, of each step and each evaluation, where it fails, and at its end.

use std::time::Duration;

use anyhow::anyhow;

use super::super::advice::{self, percent};
use super::super::samples::Seen;
use super::super::scst::Reward;
use super::super::settings::BestBy;
use super::super::summary::Summary;
use super::Run;
use crate::pipeline::{Tick, duration};
use crate::training::checkpoint;
use crate::training::metrics::Metrics;
use crate::training::objective::Objective;
use crate::training::schedule::Schedule;
use crate::training::trainer::{StepReport, TrainingError};

/// References that are told beside a sample caption; the page has all.
const REFERENCES: usize = 2;

/// The rest of a run is estimated after so many steps of it.
const STEPS_TO_ESTIMATE: u64 = 10;

impl Run<'_> {
    pub(super) fn announce(&self, total: u64) {
        let (train, dev) = (&self.corpus.train, &self.corpus.dev);
        self.reporter.note(&format!(
            "{} captions ({} tokens) to learn from, {} held out; {} trainable parameters",
            train.len(),
            train.num_tokens(),
            dev.len(),
            self.backend.layout().numel()
        ));
        let Schedule { peak, warmup_steps, .. } = self.recipe.schedule;
        self.reporter.note(&format!(
            "{total} steps: {} passes of {} steps; the learning rate rises to {peak} within {warmup_steps} steps ({} of the run)",
            self.config.recipe.epochs,
            self.steps_per_epoch(),
            percent(warmup_steps.min(total), total)
        ));
        let evaluations = self.evaluations_left();
        if evaluations > 0 {
            let measure = match self.config.recipe.best_by() {
                BestBy::Loss => "dev loss",
                BestBy::Cider => "dev CIDEr",
            };
            let patience = self.config.recipe.patience.map_or(String::new(), |patience| {
                format!("; the run ends early after {patience} evaluations without a better one")
            });
            self.reporter.note(&format!("{evaluations} evaluations to come; best/ is what has the best {measure}{patience}"));
        }
        if let (Objective::Scst, samples) = (self.config.recipe.objective, self.config.recipe.samples) {
            let images = self.rows_per_batch();
            self.reporter.note(&format!("a batch is {samples} sampled captions of each of {images} images, rewarded by CIDEr"));
        }
        advice::on_schedule(&self.config.recipe, &self.recipe.schedule, self.reporter);
        advice::on_length(&self.config.recipe, &self.bundle, train, self.reporter);
    }

    /// Evaluations that are still to come, if the run is not ended early.
    fn evaluations_left(&self) -> u64 {
        let (step, total) = (self.state.step, self.total_steps());
        let every = self.config.recipe.eval_steps.unwrap_or_else(|| self.steps_per_epoch()).max(1);
        // One at the end, whatever its step.
        if total <= step { 0 } else { (total - 1) / every - step / every + 1 }
    }

    /// About how long the rest takes, in words; none before a step was made.
    fn time_left(&self) -> Option<String> {
        let steps = self.total_steps().saturating_sub(self.state.step);
        self.spent.left(steps, self.evaluations_left()).map(duration)
    }

    pub(super) fn record(&mut self, report: &StepReport, reward: Option<Reward>, time: Duration, total: u64) {
        let seconds = time.as_secs_f64().max(1e-9);
        let (tokens, samples) = (report.tokens as f64 / seconds, report.samples as f64 / seconds);
        let within = self.state.batch as f64 / self.batches_per_epoch as f64;
        self.logs.step(Metrics {
            step: self.state.step,
            epoch: self.state.epoch as f64 + within,
            train_loss: Some(report.loss),
            dev_loss: None,
            learning_rate: Some(report.learning_rate),
            grad_norm: Some(report.grad_norm),
            tokens_per_second: Some(tokens),
            samples_per_second: Some(samples),
            gradients_ms: Some(report.gradients_time.as_secs_f64() * 1e3),
            update_ms: Some(report.update_time.as_secs_f64() * 1e3),
            reward: reward.map(|reward| reward.mean),
            reward_spread: reward.map(|reward| reward.spread),
            dev_cider: None,
        });
        self.spent.tokens += report.tokens;
        self.spent.samples += report.samples;
        self.spent.num_steps += 1;
        self.last_loss = Some(report.loss);
        if self.spent.num_steps == STEPS_TO_ESTIMATE && self.state.step < total {
            let left = self.time_left().unwrap_or_default();
            self.reporter.note(&format!(
                "{:.2} s a step: about {left} to go, evaluations not counted",
                self.spent.left(1, 0).unwrap_or(0.0)
            ));
        }
        let epoch = self.state.epoch as f64 + within;
        let first = reward.map_or(("loss", report.loss), |reward| ("reward", reward.mean));
        let rates = vec![first, ("epoch", epoch), ("tokens/s", tokens), ("samples/s", samples)];
        self.reporter.tick(&Tick { label: "training", done: self.state.step, total, rates, ..Tick::default() });
    }

    pub(super) fn tell(&self, dev_loss: Option<f64>, seen: &Seen, is_best: bool) {
        let within = self.state.batch as f64 / self.batches_per_epoch.max(1) as f64;
        let mut line =
            format!("step {} of {}, epoch {:.2}", self.state.step, self.total_steps(), self.state.epoch as f64 + within);
        let mut add = |words: String| line += &words;
        dev_loss.iter().for_each(|loss| add(format!(": dev loss {loss:.4}, perplexity {:.2}", loss.exp())));
        seen.cider.iter().for_each(|cider| add(format!(", CIDEr {cider:.4}")));
        if is_best {
            add(", the best so far".into());
        }
        if self.state.step < self.total_steps() {
            self.time_left().iter().for_each(|left| add(format!("; about {left} to go")));
        }
        self.reporter.note(&line);
        for sample in &seen.samples {
            self.reporter.note(&format!("  {}: {}", sample.image_id, sample.caption));
            sample.references.iter().take(REFERENCES).for_each(|text| self.reporter.note(&format!("    people: {text}")));
        }
    }

    /// Names the captions of a step that went wrong.
    pub(super) fn explain(&self, error: TrainingError) -> anyhow::Error {
        if !matches!(error, TrainingError::NotFinite { .. }) {
            return error.into();
        }
        let names = self.corpus.name_training_captions(&self.last_captions).unwrap_or_default();
        let names: Vec<String> = names.iter().map(|(image, caption)| format!("{image}#{caption}")).collect();
        let kept = match checkpoint::list(&self.folder.checkpoints()).ok().and_then(|found| found.last().map(|(step, _)| *step)) {
            Some(step) => format!("the checkpoint of step {step} is kept"),
            None => "there is no checkpoint yet".into(),
        };
        anyhow!("{error}; {kept}, and a lower --lr or --max-grad-norm 1 may help; captions of the step: {}", names.join(", "))
    }

    pub(super) fn summary(&self) -> Summary {
        let (tokens_per_second, samples_per_second) = self.spent.rates();
        Summary {
            steps: self.state.step,
            total_steps: self.total_steps(),
            finished: self.state.finished,
            train_captions: self.corpus.train.len(),
            dev_captions: self.corpus.dev.len(),
            trainable_parameters: self.backend.layout().numel(),
            train_loss: self.last_loss,
            dev_loss: self.dev_loss,
            best_dev_loss: self.state.best_dev_loss.map(f64::from),
            dev_cider: self.dev_cider,
            best_dev_cider: self.state.best_dev_cider.map(f64::from),
            best_step: self.state.best_step,
            tokens_per_second,
            samples_per_second,
            seconds: self.spent.seconds(),
        }
    }
}
