//! The closing words of a run over images, as text and as JSON; and of a look before one.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value as Json, json};

use super::Outcome;
use crate::dataset::wanted::LeftOut;
use crate::html::chart::thousands;
use crate::pipeline::{Compute, Input, Output, Prepare, Prepared, Report, Survey, duration};
use crate::remote;

/// Names of what a run did.
pub(super) struct Words {
    /// `caption`
    pub command: &'static str,
    /// `captioned`
    pub done: &'static str,
    /// `captions`, where an image may have several results.
    pub results: Option<&'static str>,
}

/// What a stage says of its own results, and what may be done with them.
#[derive(Default)]
pub(super) struct Look {
    /// Lines for people.
    pub text: String,
    /// More pairs of the summary.
    pub json: serde_json::Map<String, Json>,
    /// Commands that come next where everything is done.
    pub next: Vec<String>,
    /// The results went to stdout alone: what was written beside goes with the program.
    pub is_temporary: bool,
}

/// What became of everything found, what is worth a look, where it is, what comes next, and where the time went.
pub(super) fn closing(
    words: &Words,
    outcome: Outcome,
    report: &Report,
    output: &Output,
    left_out: LeftOut,
    look: Look,
) -> (String, Json) {
    let Report { counts, total, lost, timings, complete } = report;
    let Words { command, done, results } = words;
    let errors = Some(output.errors()).filter(|errors| *complete && errors.is_file());
    let found = plural(counts.found(), "file");
    let found = match total {
        _ if *complete => found,
        Some(total) => format!("interrupted after {} of {}", thousands(counts.found()), plural(*total, "file")),
        None => format!("interrupted after {found}"),
    };
    let mut text = format!("{found}: {} {done}", thousands(counts.succeeded));
    if counts.reused() > 0 && counts.reused() == counts.succeeded {
        text += if *complete { " (all reused: up to date)" } else { " (all reused)" };
    } else if counts.reused() > 0 {
        text += &format!(" ({} reused)", thousands(counts.reused()));
    }
    if counts.failed > 0 {
        let reasons: Vec<String> = counts
            .reasons()
            .map(|(reason, number)| format!("{} {}", thousands(number), reason.to_string().replace('_', " ")))
            .collect();
        text += &format!(", {} failed ({})", thousands(counts.failed), reasons.join(", "));
    }
    match counts.skipped {
        0 => {}
        1 => text += ", 1 not an image",
        skipped => text += &format!(", {} not images", thousands(skipped)),
    }
    text.push('\n');
    if counts.damaged > 0 {
        let (verb, files) = if counts.damaged == 1 { ("is", "file") } else { ("are", "files") };
        text += &format!(
            "{} of the {done} images {verb} damaged (column damaged; --fail-damaged makes such {files} fail)\n",
            thousands(counts.damaged)
        );
    }
    if counts.unlisted > 0 {
        let what = if counts.unlisted == 1 { "folder or tar" } else { "folders or tars" };
        text += &format!("{} {what} could not be read to the end: the errors table says why\n", thousands(counts.unlisted));
    }
    if let Some(note) = left_out.note() {
        text += &format!("{note}\n");
    }
    if counts.kept > 0 {
        text += &format!("{} images cannot be read this time: their results are kept from before\n", counts.kept);
    }
    if lost.dropped > 0 {
        text += &format!("dropped the results of {} images that are not found any more or cannot be used\n", lost.dropped);
    }
    if lost.renamed > 0 {
        text += &format!("{} images have another name than before\n", lost.renamed);
    }
    let mut next = Vec::new();
    if *complete || look.is_temporary {
        text += &look.text;
    }
    if look.is_temporary {
        let what = if *complete { "which images failed, and a second run computes all again" } else { "what is done" };
        if !complete || counts.failed > 0 {
            text += &format!("nothing is kept of {what}: --work DIR keeps it\n");
        }
    } else if *complete {
        text += &format!("output   {}\n", output.path().display());
        text += &errors_line(errors.as_deref());
        text += &next_lines(&look.next);
        next.extend(errors.as_deref().map(show_errors));
        next.extend(look.next);
    } else {
        text += &format!("kept     {}\n", output.work_folder().display());
        text += "next     run the same command to resume\n";
    }
    let rate = counts.computed as f64 / timings.wall_s.max(1e-9);
    let results_rate = results.map(|results| (results, counts.computed_weight as f64 / timings.wall_s.max(1e-9)));
    let rates = results_rate.map_or(String::new(), |(results, rate)| format!(", {rate:.1} {results}/s"));
    let pace = format!(", {rate:.1} images/s{rates}; slowest part: {}", timings.bottleneck());
    text += &format!("time     {}{}\n", time(timings.wall_s), if counts.computed > 0 { &pace } else { "" });
    let mut json = json!({
        "command": command,
        "exit_status": outcome.exit_code(),
        "complete": complete,
        "counts": {"found": counts.found(), *done: counts.succeeded, "failed": counts.failed, "skipped": counts.skipped},
        "damaged": counts.damaged,
        "computed": counts.computed,
        "reused": counts.reused(),
        "kept": counts.kept,
        "dropped": lost.dropped,
        "renamed": lost.renamed,
        "images_per_second": rate,
        "timings": timings,
        "failed_by_reason": counts.reasons().map(|(reason, number)| (reason.to_string(), number.into())).collect::<serde_json::Map<_, _>>(),
        "bottleneck": timings.bottleneck(),
        "out": if look.is_temporary { Path::new("-") } else { output.path() },
        "errors": errors.filter(|_| !look.is_temporary),
        "manifest": output.manifest(),
    });
    if let Some((results, rate)) = results_rate {
        json[format!("{results}_per_second")] = rate.into();
    }
    if let Some(total) = total {
        json["total"] = (*total).into();
    }
    for (name, value) in look.json {
        json[name] = value;
    }
    json["next"] = json!(next);
    if left_out != LeftOut::default() {
        json["left_out"] = json!(left_out);
    }
    if counts.unlisted > 0 {
        json["unlisted_folders"] = counts.unlisted.into();
    }
    (text, json)
}

/// How to look at the errors table, where there is one.
pub(super) fn errors_line(errors: Option<&Path>) -> String {
    errors.map_or(String::new(), |path| format!("errors   {}\n", show_errors(path)))
}

fn show_errors(errors: &Path) -> String {
    format!("clipcap show {} --count reason", quoted(errors))
}

/// A path as a shell takes it for one word. Of a URL that is signed, without the signature.
pub(super) fn quoted(path: &Path) -> String {
    quoted_word(&remote::shown(path))
}

/// The same of any word.
pub(super) fn quoted_word(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(is_plain) {
        return word.into();
    }
    let dashed = if word.starts_with('-') { "./" } else { "" };
    format!("'{dashed}{}'", word.replace('\'', r"'\''"))
}

/// Seconds that an image takes, measured on `sample` after a first round that warms everything up; `None` where there is no image.
pub(super) fn seconds_per_image<C: Compute>(
    survey: &Survey,
    prepare: &dyn Prepare,
    compute: &mut C,
    threads: usize,
) -> Result<Option<f64>> {
    let mut best: Option<f64> = None;
    for _ in 0..2 {
        let mut inputs = Vec::new();
        let start = Instant::now();
        for entry in &survey.sample {
            if let Prepared::Input { sha256, data, damaged } = prepare.prepare(entry, &mut |_| false) {
                inputs.push(Input { sha256, data, damaged });
            }
        }
        let reading = start.elapsed();
        let images = inputs.len();
        if images == 0 {
            return Ok(None);
        }
        let start = Instant::now();
        for batch in inputs.chunks(compute.batch_size().max(1)) {
            compute.encode(batch.to_vec())?;
        }
        if compute.finish()?.len() != images {
            bail!("the model returned too few results");
        }
        // The cores are shared: reading on several threads takes from the model what it needs.
        let each: Duration = (reading / threads.max(1) as u32 + start.elapsed()) / images as u32;
        best = Some(best.map_or(each.as_secs_f64(), |best| best.min(each.as_secs_f64())));
    }
    Ok(best)
}

/// What a run would meet.
pub(super) fn before(words: &Words, survey: &Survey, seconds_per_image: Option<f64>) -> (String, Json) {
    let reused = if survey.known > 0 { format!(" ({} more are done already)", thousands(survey.known)) } else { String::new() };
    let mut text = format!(
        "{}: {} to be {}{reused}, {} will fail, {}\n",
        plural(survey.found(), "file"),
        thousands(survey.images),
        words.done,
        thousands(survey.num_failed()),
        if survey.skipped == 1 { "1 is not an image".into() } else { format!("{} are not images", thousands(survey.skipped)) },
    );
    for (path, reason, message) in &survey.failures {
        text += &format!("  {path}: {reason}: {message}\n");
    }
    let listed = survey.failures.len() as u64;
    if survey.num_failed() > listed {
        text += &format!("  and {} more\n", survey.num_failed() - listed);
    }
    let seconds = seconds_per_image.map(|each| each * survey.images as f64);
    if let (Some(seconds), Some(each)) = (seconds, seconds_per_image) {
        text += &format!(
            "estimate: {} ({:.1} images/s, measured on {} of them)\n",
            duration(seconds),
            1.0 / each,
            survey.sample.len()
        );
    }
    text += "nothing was written\n";
    let failures: Vec<Json> = survey
        .failures
        .iter()
        .map(|(path, reason, message)| json!({"image_path": path, "reason": reason, "message": message}))
        .collect();
    let json = json!({
        "command": words.command,
        "dry_run": true,
        "counts": {"found": survey.found(), "images": survey.images, "known": survey.known, "failed": survey.num_failed(), "skipped": survey.skipped},
        "failed_by_reason": survey.failed,
        "failures": failures,
        "estimated_seconds": seconds,
    });
    (text, json)
}

/// `4.2 s`, and longer times in minutes and hours.
fn time(seconds: f64) -> String {
    if seconds < 90.0 { format!("{seconds:.1} s") } else { duration(seconds) }
}

/// `1 file`, `3,000 files`
pub(super) fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(number), if number == 1 { "" } else { "s" })
}

/// `next` and a command a line.
pub(super) fn next_lines(commands: &[String]) -> String {
    let mut text = String::new();
    for (at, command) in commands.iter().enumerate() {
        text += &format!("{:<9}{command}\n", if at == 0 { "next" } else { "" });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_pasted() {
        assert_eq!(quoted_word("a/照片-1.jpg"), "a/照片-1.jpg");
        assert_eq!(quoted_word("a b"), "'a b'");
        assert_eq!(quoted_word("it's"), "'it'\\''s'");
        assert_eq!(quoted_word("-x"), "'./-x'");
        assert_eq!(errors_line(Some(Path::new("t e"))), "errors   clipcap show 't e' --count reason\n");
        assert_eq!(next_lines(&["a".into(), "b".into()]), "next     a\n         b\n");
    }
}
