//! What `caption` has in common with other commands over images.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::{FileArgs, ImageArgs, ResumeArgs};
use crate::cli::{BadUsage, ComputeArgs, Context};
use crate::models::Bundle;
use crate::models::import::resolve;
use crate::pipeline::sources::Source;
use crate::pipeline::{Output, Reporter, RunSettings};
use crate::remote;
use crate::runtime::{Device, Runtime};
use crate::stages::choice::{self, Work};
use crate::stages::elsewhere::RemoteOutput;

/// Images that are encoded together where nothing else is asked for.
pub(in crate::cli) fn default_batch_size(device: Device) -> usize {
    if device.is_cpu() { 32 } else { 256 }
}

/// Flags that `caption` and `embed` share.
pub(in crate::cli) struct RunFlags<'a> {
    pub files: &'a FileArgs,
    pub images: &'a ImageArgs,
    pub resume: &'a ResumeArgs,
    pub batch_size: Option<u32>,
}

impl RunFlags<'_> {
    /// What `--device auto` becomes for these images; a device that was named is taken.
    pub fn device(
        &self,
        asked: &ComputeArgs,
        bundle: &Bundle,
        source: &Source,
        (output, format): &(Output, &str),
        context: &Context,
    ) -> Device {
        // Of embeddings, nothing is left to do that would be faster elsewhere.
        if asked.device != Device::Auto || matches!(source, Source::Embeddings(_)) {
            return asked.device;
        }
        let has_images = |least| {
            let wanted = self.files.wanted(matches!(source, Source::Paths(_))).unwrap_or_default();
            // What cannot be listed is the run's to tell.
            let listed = source.open(&output.own_paths(), self.images.reading().limits.max_bytes, &wanted);
            listed.is_ok_and(|listed| listed.has_at_least(least))
        };
        let work = Work {
            bundle,
            precision: asked.precision,
            threads: asked.threads,
            earlier: choice::earlier_device(output, format, self.resume.overwrite),
            has_images: &has_images,
        };
        choice::choose(&work, &context.terminal, &context.interrupt)
    }

    /// What they say of a run.
    ///
    /// # Errors
    /// Patterns that choose among the files of folders where there are none.
    pub fn settings(&self, source: Source, out: PathBuf, runtime: &Runtime) -> Result<RunSettings, BadUsage> {
        let is_remote = matches!(&source, Source::Paths(paths) if remote::any(paths));
        Ok(RunSettings {
            wanted: self.files.wanted(matches!(source, Source::Paths(_)))?,
            source,
            out,
            reading: self.images.reading(),
            threads: runtime.threads(),
            readers: if is_remote { remote::readers() } else { 0 },
            batch_size: self.batch_size.map_or(default_batch_size(runtime.device()), |n| n as usize),
            overwrite: self.resume.overwrite,
            keep_work: self.resume.keep_work,
            retry_failed: self.resume.retry_failed,
            prune: self.resume.may_drop(),
            max_error_rate: self.resume.max_error_rate,
        })
    }
}

/// Copies a complete output to the bucket that it is for, and says what came of all.
pub(in crate::cli) fn end(
    elsewhere: Option<&RemoteOutput>,
    is_complete: bool,
    text: &str,
    mut json: Json,
    context: &Context,
) -> anyhow::Result<()> {
    let mut text = text.to_string();
    if let Some(elsewhere) = elsewhere {
        if is_complete {
            elsewhere.publish(&context.terminal)?;
        }
        text = text.replace(&format!("output   {}\n", elsewhere.here().display()), &format!("output   {}\n", elsewhere.url()));
        json["out"] = elsewhere.url().into();
        json["copy"] = elsewhere.here().to_string_lossy().into();
    }
    context.terminal.summary(&text, &json);
    Ok(())
}

/// Which device and precision were chosen.
pub(in crate::cli) fn note_runtime(runtime: &Runtime, reporter: &dyn Reporter) {
    let openvino = runtime.openvino().map_or_else(String::new, |(_, version)| format!("OpenVINO {version}, "));
    reporter.note(&format!(
        "{openvino}ONNX Runtime {} on {}, {}, {} threads",
        runtime.version(),
        runtime.device(),
        runtime.precision(),
        runtime.threads()
    ));
}

/// Opens a bundle; a checkpoint in its place is told how to become one.
pub(in crate::cli) fn open_bundle(path: &Path) -> anyhow::Result<Bundle> {
    if path.extension().is_some_and(|extension| extension == "pt") && !path.is_dir() {
        let path = path.display();
        return Err(BadUsage(format!(
            "--model {path} is a checkpoint; make a bundle of it once:\n  clipcap model import --clip ViT-B-32.pt --gpt2 DIR \
             --checkpoint {path} --out BUNDLE"
        ))
        .into());
    }
    // A bundle on the hub is found by its name once it was fetched.
    Ok(Bundle::open(&resolve(path)?)?)
}
