//! The loop: steps, evaluations, checkpoints.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::data::Dataset;
use super::folder::RunFolder;
use super::logs::Logs;
use super::samples::{Seen, Watched};
use super::scst::{Reward, Sampler};
use super::settings::{BestBy, Config};
use super::summary::{Summary, TimeSpent};
use super::{backend, curve, page};
use crate::files;
use crate::models::Bundle;
use crate::pipeline::{Interrupt, Reporter};
use crate::runtime::{Device, Runtime};
use crate::stages::Outcome;
use crate::training::batches::{Batch, Epoch, Images, Shape, buckets};
use crate::training::checkpoint::{self, Numbers, RunState};
use crate::training::corpus::Corpus;
use crate::training::objective::Objective;
use crate::training::optimizer;
use crate::training::schedule::Schedule;
use crate::training::trainer::{self, Backend, Recipe, TrainingError};

mod telling;

/// A run under way.
pub struct Run<'a> {
    config: &'a Config,
    folder: RunFolder,
    bundle: Bundle,
    corpus: Corpus,
    runtime: &'a Runtime,
    reporter: &'a dyn Reporter,
    backend: Box<dyn Backend>,
    recipe: Recipe,
    shape: Shape,
    batches_per_epoch: usize,
    state: RunState,
    logs: Logs,
    spent: TimeSpent,
    last_loss: Option<f64>,
    dev_loss: Option<f64>,
    dev_cider: Option<f64>,
    /// Dev images that are captioned at each evaluation.
    watched: Option<Watched>,
    /// Of self-critical training.
    sampler: Option<Sampler>,
    /// Of the last step, as numbers of training captions.
    last_captions: Vec<u32>,
}

/// What a run learns from.
pub struct Data<'d> {
    pub corpus: Corpus,
    pub images: Images,
    pub dataset: &'d Dataset,
}

/// Said where a file cannot be written, as on a full disk.
const INTACT: &str = "could not save; the last checkpoint is intact: run the same command to resume";

/// Caption lengths that batches are padded to where graphs have fixed shapes: each costs a compilation and its memory.
const NUM_BUCKETS: usize = 3;

fn fixed_lengths(runtime: &Runtime, corpus: &Corpus) -> Vec<usize> {
    match runtime.device() {
        Device::OpenVino => buckets(&corpus.train, NUM_BUCKETS),
        _ => vec![],
    }
}

impl<'a> Run<'a> {
    /// Readies the model and, where there is a checkpoint, goes back to it.
    pub fn start(
        config: &'a Config,
        folder: RunFolder,
        bundle: Bundle,
        Data { corpus, images, dataset }: Data<'_>,
        runtime: &'a Runtime,
        reporter: &'a dyn Reporter,
        checkpoints: &[PathBuf],
    ) -> Result<Self> {
        let settings = &config.recipe;
        let mut backend = backend::make(&bundle, settings, runtime)?;
        let mut state = RunState::new(settings.seed, config.fingerprint());
        if let Some(path) = backend::restore(backend.as_mut(), &mut state, checkpoints, reporter)? {
            if state.fingerprint != config.fingerprint() {
                bail!("{}: a checkpoint with other settings; start over with --overwrite", path.display());
            }
            reporter.note(&format!("Resuming from step {}", state.step));
        }
        let is_captioned = settings.objective.is_of_embeddings();
        let watch = || Watched::new(&corpus, dataset, config.upkeep.sample_images, settings.cider_images);
        let watched = is_captioned.then(watch).transpose()?;
        let sample = || Sampler::new(runtime, &bundle, &corpus, dataset, settings);
        let sampler = (settings.objective == Objective::Scst).then(sample).transpose()?;
        let tokens = settings.max_tokens(&bundle);
        let shape = Shape {
            images,
            prefix_len: settings.objective.prefix_len(bundle.mapper_config()),
            prompt_len: settings.prompt_ids(&bundle)?.len(),
            buckets: fixed_lengths(runtime, &corpus),
            loss_on_padding: settings.loss_on_padding.then_some(tokens),
        };
        let mut run = Self {
            logs: Logs::open(folder.path(), state.step)?,
            recipe: Recipe {
                adamw: settings.adamw(),
                no_decay_norm_bias: settings.no_decay_norm_bias,
                max_grad_norm: settings.max_grad_norm,
                schedule: Schedule { peak: settings.learning_rate, warmup_steps: 0, total_steps: 0, decay: settings.schedule },
                seed: settings.seed,
            },
            config,
            folder,
            bundle,
            corpus,
            runtime,
            reporter,
            backend,
            shape,
            batches_per_epoch: 0,
            state,
            spent: TimeSpent::default(),
            last_loss: None,
            dev_loss: None,
            dev_cider: None,
            watched,
            sampler,
            last_captions: vec![],
        };
        run.batches_per_epoch = run.train_pass(0).len().div_ceil(run.rows_per_batch());
        let total = run.total_steps();
        run.recipe.schedule.total_steps = total;
        run.recipe.schedule.warmup_steps = settings.warmup_of(total);
        Ok(run)
    }

    /// The captions of a pass; of pairs, and where an image's captions are sampled, one of each image.
    fn train_pass(&self, epoch: u64) -> Vec<u32> {
        let train = &self.corpus.train;
        match self.config.recipe.objective {
            Objective::Contrastive | Objective::Scst => train.one_an_image(self.recipe.seed, epoch),
            Objective::Caption | Objective::LanguageModel => (0..train.len() as u32).collect(),
        }
    }

    /// The captions of an evaluation; of pairs, one of each image.
    fn dev_pass(&self) -> Vec<u32> {
        let dev = &self.corpus.dev;
        match self.config.recipe.objective {
            Objective::Contrastive => dev.one_an_image(self.recipe.seed, 0),
            _ => (0..dev.len() as u32).collect(),
        }
    }

    /// Captions, or images whose captions are sampled, of a batch.
    fn rows_per_batch(&self) -> usize {
        let recipe = &self.config.recipe;
        if recipe.objective == Objective::Scst { recipe.batch_size / recipe.samples } else { recipe.batch_size }
    }

    /// Optimizer steps of a pass.
    fn steps_per_epoch(&self) -> u64 {
        self.batches_per_epoch.div_ceil(self.config.recipe.gradient_accumulation_steps) as u64
    }

    fn total_steps(&self) -> u64 {
        let all = self.config.recipe.epochs.saturating_mul(self.steps_per_epoch());
        self.config.recipe.max_steps.map_or(all, |max| max.min(all))
    }

    /// Steps until the end, early or not, or until interrupted.
    pub fn finish(mut self, interrupt: &Interrupt) -> Result<(Outcome, Summary)> {
        let total = self.total_steps();
        if self.state.finished {
            let best = self.folder.best();
            if !best.is_dir() {
                bail!("the run is finished, and its {} is missing: --overwrite trains again", best.display());
            }
            // A disk that failed at the end may have kept older ones.
            checkpoint::prune(&self.folder.checkpoints(), self.config.upkeep.keep)?;
            self.reporter.note("this run is finished; another --out or --overwrite begins a new one");
            return Ok((Outcome::Complete, self.summary()));
        }
        self.announce(total);
        let mut outcome = Outcome::Complete;
        while self.state.step < total && !self.out_of_patience() {
            let (train, seed, number) = (&self.corpus.train, self.recipe.seed, self.state.epoch);
            let epoch = Epoch::shuffled(train, self.train_pass(number), self.rows_per_batch(), seed, number);
            if self.run_epoch(&epoch, total, interrupt)? {
                outcome = Outcome::Interrupted;
                break;
            }
        }
        if outcome == Outcome::Complete {
            self.end()?;
        } else {
            self.save()?;
            self.reporter.note(&format!("stopped after step {}: run the same command to resume", self.state.step));
        }
        Ok((outcome, self.summary()))
    }

    /// The rest of a pass. True if it was interrupted.
    fn run_epoch(&mut self, epoch: &Epoch, total: u64, interrupt: &Interrupt) -> Result<bool> {
        let accumulation = self.config.recipe.gradient_accumulation_steps;
        while (self.state.batch as usize) < epoch.num_batches() && self.state.step < total && !self.out_of_patience() {
            if interrupt.is_set() {
                return Ok(true);
            }
            let started = Instant::now();
            let first = self.state.batch as usize;
            let numbers = first..(first + accumulation).min(epoch.num_batches());
            let (batches, reward) = self.batches(numbers.clone().map(|n| epoch.batch(n)))?;
            self.last_captions = numbers.clone().flat_map(|n| epoch.batch(n).to_vec()).collect();
            let data = started.elapsed();
            let result = trainer::step(self.backend.as_mut(), &self.recipe, self.state.step, &batches);
            let report = match result {
                Ok(report) => report,
                Err(error) => return Err(self.explain(error)),
            };
            let step_time = started.elapsed();
            self.spent.data += data;
            self.spent.steps += step_time - data;
            self.advance(numbers.end, epoch.num_batches());
            self.record(&report, reward, step_time, total);
            self.spent.logging += started.elapsed() - step_time;
            let recipe = &self.config.recipe;
            let at_eval = recipe.eval_steps.map_or(self.state.batch == 0, |steps| self.state.step.is_multiple_of(steps));
            if at_eval && self.state.step < total {
                self.evaluate()?;
            }
            if self.state.step.is_multiple_of(self.config.upkeep.save_steps) && self.state.step < total {
                self.save()?;
            }
            if self.state.batch == 0 {
                break;
            }
        }
        Ok(false)
    }

    fn advance(&mut self, batch: usize, num_batches: usize) {
        self.state.step += 1;
        self.state.batch = batch as u64;
        if batch == num_batches {
            self.state.batch = 0;
            self.state.epoch += 1;
        }
    }

    /// The batches of a step, and what its samples were worth where captions are sampled.
    fn batches<'e>(&mut self, numbers: impl Iterator<Item = &'e [u32]>) -> Result<(Vec<Batch>, Option<Reward>)> {
        let (corpus, shape) = (&self.corpus, &self.shape);
        let Some(sampler) = &mut self.sampler else {
            return Ok((numbers.map(|numbers| Batch::new(corpus, &corpus.train, numbers, shape)).collect(), None));
        };
        let layout = self.backend.layout().clone();
        sampler.take(&layout, self.backend.parameters()?)?;
        let (mut batches, mut values) = (vec![], vec![]);
        for numbers in numbers {
            let rows: Vec<usize> = numbers.iter().map(|&n| corpus.train.image_row(n as usize)).collect();
            let sampled = sampler.sample(corpus, &rows, self.state.step, shape)?;
            batches.push(sampled.batch);
            values.extend(sampled.values);
        }
        Ok((batches, Some(Reward::of(&values))))
    }

    fn out_of_patience(&self) -> bool {
        self.config.recipe.patience.is_some_and(|patience| self.state.evaluations_since_best >= patience)
    }

    /// Dev loss, `last/`, `best/` where it is better, captions of a few images.
    fn evaluate(&mut self) -> Result<()> {
        let started = Instant::now();
        let dev = &self.corpus.dev;
        let plan = Epoch::sorted(dev, self.dev_pass(), self.config.recipe.batch_size);
        let batches = (0..plan.num_batches()).map(|n| Batch::new(&self.corpus, &self.corpus.dev, plan.batch(n), &self.shape));
        let dev_loss = trainer::evaluate(self.backend.as_mut(), batches)?;
        let step = self.state.step;
        if let Some(value) = dev_loss.filter(|loss| !loss.is_finite()) {
            return Err(self.explain(TrainingError::NotFinite { what: "dev loss", step, value }));
        }
        self.check_numbers()?;
        let layout = self.backend.layout().clone();
        let parameters = self.backend.parameters()?;
        self.folder.write_last(&self.bundle, self.config.recipe.lora.as_ref(), &layout, parameters, step).context(INTACT)?;
        let seen = self.look()?;
        (self.dev_loss, self.dev_cider) = (dev_loss.or(self.dev_loss), seen.cider.or(self.dev_cider));
        let is_best = self.judge(dev_loss, seen.cider);
        if is_best {
            self.folder.promote_last().context(INTACT)?;
        }
        self.logs.evaluated(step, dev_loss, &seen);
        self.spent.evaluation += started.elapsed();
        self.spent.num_evaluations += 1;
        self.tell(dev_loss, &seen, is_best);
        curve::write(self.folder.path(), self.logs.rows()).context(INTACT)?;
        let page = page::render(&self.config.recipe, self.total_steps(), self.logs.rows(), self.logs.shown());
        files::write_atomic(&self.folder.page(), page.as_bytes()).context(INTACT)?;
        self.logs.save().context(INTACT)
    }

    /// Captions of some dev images.
    fn look(&self) -> Result<Seen> {
        let last = || Bundle::open(&self.folder.last());
        match &self.watched {
            Some(watched) => watched.look(self.runtime, &last()?, &self.corpus),
            None => Ok(Seen { samples: vec![], cider: None }),
        }
    }

    /// Whether an evaluation is the best so far, which is kept. Numbers are compared as the checkpoint keeps them.
    fn judge(&mut self, dev_loss: Option<f64>, cider: Option<f64>) -> bool {
        let (loss, cider) = (dev_loss.map(|loss| loss as f32), cider.map(|cider| cider as f32));
        let state = &mut self.state;
        let is_best = match (self.config.recipe.best_by(), loss, cider) {
            (BestBy::Cider, _, Some(cider)) => state.best_dev_cider.is_none_or(|best| cider > best),
            (_, Some(loss), _) => state.best_dev_loss.is_none_or(|best| loss < best),
            // Without a dev split nothing is the best.
            (_, None, _) => return false,
        };
        if is_best {
            (state.best_dev_loss, state.best_step) = (loss, Some(state.step));
            // Runs of before this measure have states without it.
            state.best_dev_cider = cider.filter(|_| self.config.recipe.best_by() == BestBy::Cider);
            state.evaluations_since_best = 0;
        } else {
            state.evaluations_since_best += 1;
        }
        is_best
    }

    /// A checkpoint; older ones go once it is there.
    fn save(&mut self) -> Result<()> {
        let started = Instant::now();
        self.check_numbers()?;
        self.logs.save().context(INTACT)?;
        let layout = self.backend.layout().clone();
        let [parameters, exp_avg, exp_avg_sq] = self.backend.numbers()?;
        let folder = self.folder.checkpoints();
        let numbers = Numbers { layout: &layout, parameters, exp_avg, exp_avg_sq };
        checkpoint::write(&checkpoint::place(&folder, self.state.step), &self.state, &numbers).context(INTACT)?;
        checkpoint::prune(&folder, self.config.upkeep.keep)?;
        self.spent.saving += started.elapsed();
        Ok(())
    }

    /// What is no number any more is neither saved nor made a bundle: it would push out the last that is good.
    fn check_numbers(&mut self) -> Result<()> {
        let [parameters, exp_avg, exp_avg_sq] = self.backend.numbers()?.map(optimizer::global_norm);
        let named = [("parameters' norm", parameters), ("first moments' norm", exp_avg), ("second moments' norm", exp_avg_sq)];
        match named.into_iter().find(|(_, norm)| !norm.is_finite()) {
            Some((what, value)) => Err(self.explain(TrainingError::NotFinite { what, step: self.state.step, value })),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<()> {
        if self.out_of_patience() && self.state.step < self.total_steps() {
            self.reporter.note(&format!("no better evaluation in {} of them", self.state.evaluations_since_best));
        } else {
            self.evaluate()?;
        }
        // Without a dev split, the last model is the best one known.
        if self.state.best_step.is_none() {
            self.folder.promote_last()?;
        }
        self.state.finished = true;
        self.save()
    }
}
