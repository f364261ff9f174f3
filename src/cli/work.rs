//! One worker of a job, whichever command it runs.

use serde_json::json;

use super::caption::{default_batch_size, note_runtime};
use super::{BadUsage, ComputeArgs, Context};
use crate::pipeline::Crew;
use crate::pipeline::job::{JobFolder, Plan};
use crate::runtime::{Device, Runtime};
use crate::stages::Outcome;
use crate::stages::job::{ShardEnd, Shards, Worker};

/// Which shards a worker takes.
#[derive(clap::Args)]
pub(super) struct ShardArgs {
    /// The job's shard to work on, from 0, or a range such as 0-9 (default: SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX)
    #[arg(long, value_name = "K|K-L", requires = "job", help_heading = "Job")]
    pub shard: Option<Shards>,
    /// Take a shard that nobody works on, or whose worker died (--next=all: until none is left)
    #[arg(long, value_name = "all", requires = "job", conflicts_with = "shard", num_args = 0..=1, require_equals = true, default_missing_value = "one", value_parser = ["one", "all"], help_heading = "Job")]
    pub next: Option<String>,
}

/// A worker's job and what it takes of it.
pub(super) struct Work<'a> {
    job: &'a JobFolder,
    command: &'static str,
    pub plan: Plan,
    pub shards: Shards,
    again: bool,
    /// Once the runtime was started.
    crew: Option<Crew>,
    context: &'a Context,
}

impl<'a> Work<'a> {
    /// None where everything asked for is finished, which is told.
    ///
    /// # Errors
    /// No job, one of another command, or shards that it does not have.
    pub fn open(
        job: &'a JobFolder,
        command: &'static str,
        args: &ShardArgs,
        again: bool,
        context: &'a Context,
    ) -> anyhow::Result<Option<Self>> {
        let plan = job.plan()?;
        if plan.settings.stage != command {
            let (job, stage) = (job.root().display(), &plan.settings.stage);
            return Err(BadUsage(format!("{job}: this job was planned for {stage}: clipcap {stage} --job {job}")).into());
        }
        let shards = shards(args, &plan)?;
        let work = Self { job, command, plan, shards, again, crew: None, context };
        work.worker().tidy();
        if !work.worker().open_shards(&work.shards).is_empty() {
            return Ok(Some(work));
        }
        let state = if matches!(work.shards, Shards::Range(..)) { "finished before" } else { "every shard is finished" };
        work.result(state, &[], Outcome::Complete);
        Ok(None)
    }

    pub fn worker(&self) -> Worker<'_> {
        let (reporter, interrupt) = (&self.context.terminal, &self.context.interrupt);
        Worker { job: self.job, plan: &self.plan, again: self.again, crew: self.crew.as_ref(), reporter, interrupt }
    }

    /// Starts the runtime with the plan's precision, on the device that was asked for here or there, with this worker's part of the cores.
    ///
    /// # Errors
    /// A plan of another version; no such device.
    pub fn runtime(&mut self, args: &ComputeArgs) -> anyhow::Result<Runtime> {
        let wrong = |message: String| anyhow::anyhow!("{}: {message}", self.job.root().display());
        let device = match args.device {
            Device::Auto => self.plan.device.parse().map_err(wrong)?,
            device => device,
        };
        // What Slurm gives a task is what it may use, whatever else the machine has.
        let given = std::env::var("SLURM_CPUS_PER_TASK").ok().and_then(|cores| cores.parse().ok()).filter(|cores| *cores > 0);
        let precision = self.plan.precision.parse().map_err(wrong)?;
        let crew = Crew::join(args.threads.or(given));
        let runtime = self.context.runtime(device, precision, Some(crew.part().threads))?;
        self.crew = Some(crew);
        note_runtime(&runtime, &self.context.terminal);
        Ok(runtime)
    }

    /// Images encoded together: as said here, as planned, or as the device likes it.
    pub fn batch_size(&self, said: Option<u32>, runtime: &Runtime) -> usize {
        let said = said.map(|n| n as usize).or(self.plan.batch_size);
        said.unwrap_or_else(|| default_batch_size(runtime.device()))
    }

    /// Says what was done.
    ///
    /// # Errors
    /// None.
    pub fn end(&self, ends: &[ShardEnd]) -> anyhow::Result<Outcome> {
        let is_interrupted = ends.iter().any(|end| matches!(end, ShardEnd::Interrupted(_)));
        let outcome = if is_interrupted { Outcome::Interrupted } else { Outcome::Complete };
        let mut text: String = ends.iter().map(|end| end.text() + "\n").collect();
        if ends.is_empty() {
            text = "no shard to take: other workers have those that are not finished".into();
        }
        self.result(&text, ends, outcome);
        Ok(outcome)
    }

    fn result(&self, text: &str, ends: &[ShardEnd], outcome: Outcome) {
        let shards: Vec<_> = ends.iter().map(ShardEnd::json).collect();
        let json = json!({"command": self.command, "job": self.job.root(), "shards": shards,
                          "complete": outcome != Outcome::Interrupted, "exit_status": outcome.exit_code()});
        self.context.terminal.summary(text, &json);
    }
}

/// The shards that the flags, or the engine that started this worker, ask for.
fn shards(args: &ShardArgs, plan: &Plan) -> anyhow::Result<Shards> {
    const ENGINES: [&str; 2] = ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"];
    let engine = ENGINES.iter().find_map(|name| Some((*name, std::env::var(name).ok().filter(|value| !value.is_empty())?)));
    let (name, shards) = match (&args.shard, args.next.as_deref(), engine) {
        (_, Some("all"), _) => return Ok(Shards::AllNext),
        (_, Some(_), _) => return Ok(Shards::Next),
        (Some(shards), ..) => ("--shard", shards.clone()),
        (.., Some((name, value))) => {
            let number: u64 =
                value.parse().map_err(|_| BadUsage(format!("{name}={value} is not a shard number: give --shard")))?;
            (name, Shards::Range(number, number))
        }
        _ => return Err(BadUsage("which shard? Give --shard K (or a range K-L), or --next".into()).into()),
    };
    if let Shards::Range(_, to) = shards
        && to >= plan.num_shards
    {
        let last = plan.num_shards.saturating_sub(1);
        return Err(BadUsage(format!("{name} {to}: this job's shards are 0 to {last}")).into());
    }
    Ok(shards)
}
