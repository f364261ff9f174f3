//! A look at everything listed without computing anything: what is an image, what will fail, and a few images to time a model with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use anyhow::Result;
use crossbeam_channel::bounded;

use super::entry::{Content, Entry};
use crate::image::{self, Limits, Reason, called_an_image};

/// Failures told one by one.
const TOLD: usize = 20;

/// What a survey found.
#[derive(Debug, Default)]
pub struct Survey {
    /// Images to be computed.
    pub images: u64,
    /// Images whose results an unfinished run has already.
    pub known: u64,
    pub skipped: u64,
    /// How many fail, by reason.
    pub failed: BTreeMap<&'static str, u64>,
    /// image_path, reason and message of the first failures in list order.
    pub failures: Vec<(String, &'static str, String)>,
    /// The first good images.
    pub sample: Vec<Entry>,
}

impl Survey {
    /// Images that would fail.
    pub fn num_failed(&self) -> u64 {
        self.failed.values().sum()
    }

    /// All files that were looked at.
    pub fn found(&self) -> u64 {
        self.images + self.known + self.skipped + self.num_failed()
    }
}

enum Verdict {
    Image,
    Skipped,
    Failed(&'static str, String),
    /// A folder that cannot be listed: told, and not counted.
    Unlisted(String),
}

/// Reads the headers of all images on several threads, but those that `is_known`. `sample_images` good ones are kept.
pub fn survey(
    entries: impl Iterator<Item = Result<Entry>>,
    limits: &Limits,
    threads: usize,
    sample_images: usize,
    mut is_known: impl FnMut(&Entry) -> Result<bool>,
    unlisted: &dyn Fn(&str),
) -> Result<Survey> {
    let found = Mutex::new((Survey::default(), Vec::new(), Vec::new()));
    let known = thread::scope(|scope| {
        let (send, jobs) = bounded::<(usize, Entry)>(threads.max(1) * 4);
        let found = &found;
        let mut known = 0;
        for _ in 0..threads.max(1) {
            let jobs = jobs.clone();
            scope.spawn(move || {
                for (position, entry) in jobs {
                    let verdict = judge(&entry, limits);
                    let mut found = found.lock().unwrap_or_else(|e| e.into_inner());
                    let (survey, failures, sample) = &mut *found;
                    match verdict {
                        Verdict::Skipped | Verdict::Unlisted(_) => survey.skipped += 1,
                        Verdict::Image => {
                            survey.images += 1;
                            // Whatever thread comes first: the earliest in the list are kept.
                            keep_earliest(sample, sample_images, position, entry);
                        }
                        Verdict::Failed(reason, message) => {
                            *survey.failed.entry(reason).or_default() += 1;
                            keep_earliest(failures, TOLD, position, (entry.image_path, reason, message));
                        }
                    }
                }
            });
        }
        drop(jobs);
        for (position, entry) in entries.enumerate() {
            let entry = entry?;
            if let Verdict::Unlisted(message) = judge_unread(&entry).unwrap_or(Verdict::Image) {
                unlisted(&format!("{}: {message}", entry.image_path));
            } else if is_known(&entry)? {
                known += 1;
            } else if send.send((position, entry)).is_err() {
                break;
            }
        }
        anyhow::Ok(known)
    })?;
    let (mut survey, failures, sample) = found.into_inner().unwrap_or_else(|e| e.into_inner());
    survey.known = known;
    survey.failures = failures.into_iter().map(|(_, failure)| failure).collect();
    survey.sample = sample.into_iter().map(|(_, entry)| entry).collect();
    Ok(survey)
}

fn keep_earliest<T>(kept: &mut Vec<(usize, T)>, most: usize, position: usize, item: T) {
    let at = kept.partition_point(|(other, _)| *other < position);
    if at < most {
        kept.insert(at, (position, item));
        kept.truncate(most);
    }
}

/// What can be said without reading.
fn judge_unread(entry: &Entry) -> Option<Verdict> {
    match &entry.content {
        Content::Failed(failure) => {
            let reason: Option<Reason> = failure.reason.parse().ok();
            Some(Verdict::Failed(reason.unwrap_or(Reason::Unreadable).as_str(), failure.message.clone()))
        }
        Content::Unlisted(failure) => Some(Verdict::Unlisted(failure.message.clone())),
        Content::Other | Content::Used => Some(Verdict::Skipped),
        Content::Embedding { .. } | Content::Kept(_) => Some(Verdict::Image),
        Content::File { .. } | Content::Bytes(_) => None,
    }
}

fn judge(entry: &Entry, limits: &Limits) -> Verdict {
    let header = match &entry.content {
        Content::File { path, .. } => file_header(path, limits),
        Content::Bytes(bytes) => image::header(bytes, limits).map(Some),
        _ => return judge_unread(entry).unwrap_or(Verdict::Skipped),
    };
    match header {
        Ok(Some(_)) => Verdict::Image,
        Ok(None) => Verdict::Skipped,
        Err(failure) => Verdict::Failed(failure.reason.as_str(), failure.message),
    }
}

/// `None` where the file is neither called an image nor one inside.
fn file_header(path: &Path, limits: &Limits) -> Result<Option<image::Header>, image::Failure> {
    match image::file_header(path, limits) {
        Ok(header) => Ok(Some(header)),
        Err(failure)
            if !called_an_image(path) && !matches!(failure.reason, Reason::Truncated | Reason::TooLarge | Reason::Corrupt) =>
        {
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}
