//! `caption --stdin arrow --stdout arrow`.

use std::path::{Path, PathBuf};

use super::{CaptionArgs, RunFlags, note_runtime, open_bundle, within_positions};
use crate::cli::{BadUsage, ComputeArgs, Context};
use crate::generation;
use crate::pipeline::Reporter;
use crate::pipeline::sources::Source;
use crate::stages::Outcome;
use crate::stages::caption::{self, CaptionSettings, Style, TableFormat};

/// Captions what comes in, and says how much on stderr: stdout is the stream's.
///
/// # Errors
/// See [`caption::pipe`].
pub(super) fn run(model: &Path, args: &CaptionArgs, context: &Context) -> anyhow::Result<Outcome> {
    let flags = args.decoding.flags();
    let decoding = generation::Settings::from_flags(&flags).map_err(|error| BadUsage(error.to_string()))?;
    let bundle = open_bundle(model)?;
    let wording = args.decoding.wording(&bundle)?;
    let decoding = within_positions(decoding, &flags, &bundle, &wording)?;
    if args.scoring.open(model)?.is_some() {
        return Err(BadUsage("--stdin arrow scores no captions: score the table that is made of them".into()).into());
    }
    let ComputeArgs { device, precision, threads } = args.compute.clone();
    let runtime = context.runtime(device, precision, threads)?;
    let run = RunFlags { files: &args.files, images: &args.images, resume: &args.resume, batch_size: args.batch_size };
    let settings = CaptionSettings {
        run: run.settings(Source::Paths(Vec::new()), PathBuf::new(), &runtime)?,
        format: TableFormat::Parquet,
        style: Style::default(),
        decoding,
        wording,
        scoring: None,
        only: None,
        split: None,
    };
    context.terminal.take_stdout();
    note_runtime(&runtime, &context.terminal);
    let model = caption::info(&bundle, &runtime)?;
    let load = || caption::load(&bundle, &runtime, &settings.decoding, &settings.wording, settings.run.batch_size, false);
    let (input, output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let piped = caption::pipe(&settings, &model, load, input, output, &context.interrupt)?;
    context.terminal.note(&format!("{} images captioned, {} failed", piped.captioned, piped.failed));
    Ok(match piped {
        piped if !piped.complete => Outcome::Interrupted,
        piped if piped.failed as f64 > settings.run.max_error_rate * (piped.failed + piped.captioned) as f64 => {
            Outcome::TooManyFailed
        }
        piped if piped.failed > 0 => Outcome::SomeFailed,
        _ => Outcome::Complete,
    })
}
