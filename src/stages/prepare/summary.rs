//! What prepare found, counted: for the manifest, the terminal and the exit status.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::PrepareSettings;
use super::scores::{LowScored, Scores};
use crate::dataset::assemble::Assembled;
use crate::dataset::captions::{FileReport, Reason};
use crate::dataset::lint::{LINT_COLUMNS, Lint};
use crate::dataset::tables::{DuplicateRow, ImageRow};
use crate::pipeline::{Output, Reporter};
use crate::stages::Outcome;
use crate::stages::summary::{errors_line, next_lines, quoted};

/// Counts of a finished dataset.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub files: Vec<FileReport>,
    pub captions: u64,
    /// By status: ok, failed, missing, unchecked.
    pub images: BTreeMap<&'static str, u64>,
    pub failed_by_reason: BTreeMap<&'static str, u64>,
    pub captions_without_image: u64,
    pub images_without_caption: u64,
    pub bad_by_reason: BTreeMap<&'static str, u64>,
    /// Images and captions that the list of --drop left out.
    pub dropped: (u64, u64),
    /// Where captions were scored.
    pub clip: Option<ClipFacts>,
    /// Images and captions by split; the empty name holds those in none.
    pub splits: BTreeMap<String, (u64, u64)>,
    pub split_conflicts: u64,
    /// Names of images that may be two files, or that share a file with another name.
    pub image_conflicts: u64,
    /// Images that the official lists name and the dataset lacks.
    pub listed_and_absent: u64,
    pub lint: BTreeMap<&'static str, u64>,
    /// Pairs by kind, and of those the ones that straddle splits.
    pub duplicates: BTreeMap<&'static str, (u64, u64)>,
    images_given: bool,
    /// The dataset's folder, and those of its images.
    out: PathBuf,
    folders: Vec<PathBuf>,
}

/// `DATASET-NAME`
fn beside(dataset: &Path, name: &str) -> PathBuf {
    let mut file = dataset.file_name().unwrap_or_default().to_os_string();
    file.push(format!("-{name}"));
    dataset.with_file_name(file)
}

/// How captions fit their pictures.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct ClipFacts {
    /// Captions in the dataset that have a score.
    pub scored: u64,
    /// And those that have none: the picture is missing or cannot be read, or the caption is blank.
    pub unscored: u64,
    pub images_unread: u64,
    /// Captions in the table of their own.
    pub below_min_clip_score: u64,
    /// The same by split.
    pub below_by_split: BTreeMap<String, u64>,
    /// Of what is in the dataset.
    pub mean: Option<f64>,
}

impl ClipFacts {
    /// Counts, once the captions below are taken out of `scores`.
    pub(super) fn new(scores: &Scores, below: &LowScored) -> Self {
        let there: Vec<f64> = scores.all.iter().flatten().map(|&score| f64::from(score)).collect();
        let mean = there.iter().sum::<f64>() / there.len().max(1) as f64;
        Self {
            scored: there.len() as u64,
            unscored: (scores.all.len() - there.len()) as u64,
            images_unread: scores.unread,
            below_min_clip_score: below.len(),
            below_by_split: below.splits.clone(),
            mean: (!there.is_empty()).then(|| (mean * 1e4).round() / 1e4),
        }
    }
}

impl Summary {
    pub fn new(
        set: &Assembled,
        rows: &[ImageRow],
        marks: Option<&[Lint]>,
        twins: &[DuplicateRow],
        settings: &PrepareSettings,
        listed: usize,
    ) -> Self {
        let mut summary = Self {
            files: set.captions.files.clone(),
            captions: set.places.len() as u64,
            split_conflicts: set.split_conflicts,
            image_conflicts: set.unplaced.iter().filter(|line| line.bad.reason == Reason::ImageConflict).count() as u64,
            images_given: !settings.images.is_empty(),
            out: settings.out.clone(),
            folders: settings.images.clone(),
            ..Self::default()
        };
        for row in rows {
            let captions = row.num_captions as u64;
            *summary.images.entry(row.status).or_default() += 1;
            if let Some(reason) = row.reason {
                *summary.failed_by_reason.entry(reason).or_default() += 1;
            }
            if row.status == "missing" {
                summary.captions_without_image += captions;
            }
            summary.images_without_caption += u64::from(captions == 0);
            let name = row.split.unwrap_or_default();
            if !summary.splits.contains_key(name) {
                summary.splits.insert(name.into(), (0, 0));
            }
            let split = summary.splits.get_mut(name).expect("put there above");
            split.0 += 1;
            split.1 += captions;
        }
        for line in &set.captions.bad {
            *summary.bad_by_reason.entry(line.bad.reason.name()).or_default() += 1;
        }
        if !settings.splits.lists.is_empty() {
            let there = rows.iter().filter(|row| row.split.is_some()).count() as u64;
            let by_ratio = settings.splits.ratios.is_some();
            summary.listed_and_absent = if by_ratio { 0 } else { (listed as u64).saturating_sub(there) };
        }
        for mark in marks.unwrap_or_default() {
            for (name, set) in LINT_COLUMNS.iter().zip(mark.values()) {
                *summary.lint.entry(name).or_default() += u64::from(set);
            }
        }
        for twin in twins {
            let count = summary.duplicates.entry(twin.kind).or_default();
            count.0 += 1;
            count.1 += u64::from(twin.split != twin.other_split);
        }
        summary
    }

    fn lines(&self) -> u64 {
        self.files.iter().map(|f| f.lines).sum()
    }

    fn bad(&self) -> u64 {
        self.files.iter().map(|f| f.bad).sum()
    }

    fn status(&self, name: &str) -> u64 {
        self.images.get(name).copied().unwrap_or(0)
    }

    /// 0 all good; 3 with bad lines, bad images or captions without one; 1 above the allowed share, or where no image was found.
    pub fn outcome(&self, max_error_rate: f64) -> Outcome {
        let failed = self.bad() + self.status("failed") + self.status("missing");
        let checked = self.lines() + if self.images_given { self.images.values().sum() } else { 0 };
        let none_found = self.images_given && self.status("ok") + self.status("failed") == 0;
        match failed {
            _ if none_found => Outcome::TooManyFailed,
            0 => Outcome::Complete,
            _ if failed as f64 > max_error_rate * checked as f64 => Outcome::TooManyFailed,
            _ => Outcome::SomeFailed,
        }
    }

    pub fn to_json(&self) -> Map<String, Value> {
        let splits: BTreeMap<&str, Value> = self
            .splits
            .iter()
            .map(|(name, (images, captions))| {
                let name = if name.is_empty() { "none" } else { name };
                (name, json!({"images": images, "captions": captions}))
            })
            .collect();
        let duplicates: BTreeMap<&str, Value> = self
            .duplicates
            .iter()
            .map(|(kind, (pairs, across))| (*kind, json!({"pairs": pairs, "across_splits": across})))
            .collect();
        let mut value = json!({
            "counts": {
                "captions": self.captions,
                "images": self.images.values().sum::<u64>(),
                "images_by_status": self.images,
                "images_failed_by_reason": self.failed_by_reason,
                "captions_without_image": self.captions_without_image,
                "images_without_caption": self.images_without_caption,
                "lines": self.lines(),
                "blank": self.files.iter().map(|f| f.blank).sum::<u64>(),
                "bad": self.bad(),
                "bad_by_reason": self.bad_by_reason,
                "split_conflicts": self.split_conflicts,
                "image_conflicts": self.image_conflicts,
                "listed_and_absent": self.listed_and_absent,
            },
            "splits": splits,
            "duplicates": duplicates,
            "lint": self.lint,
            "files": self.files,
        });
        if let Some(clip) = &self.clip {
            value["counts"]["below_min_clip_score"] = clip.below_min_clip_score.into();
            value["clip_score"] = json!(clip);
        }
        match value {
            Value::Object(mut map) if self.dropped != (0, 0) => {
                let (images, captions) = self.dropped;
                map["counts"]["dropped"] = json!({"images": images, "captions": captions});
                map
            }
            Value::Object(map) => map,
            other => unreachable!("an object was written, not {other}"),
        }
    }

    /// What deserves a look, on stderr.
    pub fn report(&self, errors: &Path, reporter: &dyn Reporter) {
        let errors = quoted(errors);
        if let Some(clip) = self.clip.as_ref().filter(|clip| clip.images_unread > 0) {
            reporter.warn(&format!("{} images cannot be read: their captions have no clip_score", clip.images_unread));
        }
        if self.bad() > 0 {
            let reasons: Vec<String> = self.bad_by_reason.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            reporter.warn(&format!("{} bad lines ({}): clipcap show {errors}", self.bad(), reasons.join(", ")));
        }
        if self.images_given && self.status("ok") + self.status("failed") == 0 {
            reporter.warn("no image was found in the folder given: is it the right one?");
        } else if self.status("missing") > 0 {
            let (images, captions) = (self.status("missing"), self.captions_without_image);
            reporter.warn(&format!(
                "{images} images with {captions} captions were not found in the folder: status missing in images.parquet, and why in {errors}"
            ));
        }
        if self.image_conflicts > 0 {
            reporter.warn(&format!(
                "{} names of images are not matched because two names or two files would be one: clipcap show {errors} --where reason=image_conflict",
                self.image_conflicts
            ));
        }
        if self.status("failed") > 0 {
            let reasons: Vec<String> = self.failed_by_reason.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            reporter.warn(&format!("{} images failed ({}): see images.parquet", self.status("failed"), reasons.join(", ")));
        }
        if self.images_given && self.images_without_caption > 0 {
            reporter.note(&format!("{} images have no caption", self.images_without_caption));
        }
        if self.split_conflicts > 0 {
            let count = self.split_conflicts;
            reporter.warn(&format!(
                "{count} images stand in several splits: each is in the one held out (test, then dev) with all its captions"
            ));
        }
        if self.listed_and_absent > 0 {
            reporter.warn(&format!("{} images of the split lists are not in the dataset", self.listed_and_absent));
        }
        for (kind, (pairs, across)) in self.duplicates.iter().filter(|(_, (_, across))| *across > 0) {
            reporter.warn(&format!("{across} of {pairs} {kind} duplicates straddle splits: see duplicates.parquet"));
        }
    }

    /// Where everything lies, and what comes next.
    fn places(&self) -> String {
        let mut text = format!("output   {}\n", self.out.display());
        let errors = Output::folder(&self.out).errors();
        text += &errors_line(Some(errors.as_path()).filter(|_| self.bad() + self.status("missing") + self.image_conflicts > 0));
        let mut next = vec![format!("clipcap stats {} -o {}", quoted(&self.out), quoted(&beside(&self.out, "statistics")))];
        if self.images_given {
            let images: Vec<String> = self.folders.iter().map(|path| quoted(path)).collect();
            let (images, embeddings) = (images.join(" "), quoted(&beside(&self.out, "embeddings")));
            next.push(format!("clipcap embed --dataset {} --images {images} -m MODEL -o {embeddings}", quoted(&self.out)));
        }
        text + &next_lines(&next)
    }

    /// The closing summary.
    pub fn to_text(&self) -> String {
        let images: u64 = self.images.values().sum();
        let mut text =
            format!("{} captions of {images} images from {} lines in {} files\n", self.captions, self.lines(), self.files.len());
        if self.dropped != (0, 0) {
            let (images, captions) = self.dropped;
            text.push_str(&format!("  left out by --drop: {images} images with {captions} captions\n"));
        }
        for (name, (images, captions)) in &self.splits {
            let name = if name.is_empty() { "no split" } else { name };
            text.push_str(&format!("  {name:<10} {images:>9} images {captions:>9} captions\n"));
        }
        if let Some(clip) = &self.clip {
            let mean = clip.mean.map_or(String::new(), |mean| format!(", mean {mean:.4}"));
            text.push_str(&format!("  clip_score of {} captions{mean}; {} without\n", clip.scored, clip.unscored));
            if clip.below_min_clip_score > 0 {
                text.push_str(&format!(
                    "  below --min-clip-score: {} captions, in below_min_clip_score.parquet\n",
                    clip.below_min_clip_score
                ));
            }
        }
        for (kind, (pairs, across)) in &self.duplicates {
            text.push_str(&format!("  {pairs} pairs of {kind} duplicates, {across} across splits\n"));
        }
        for (name, count) in self.lint.iter().filter(|(_, count)| **count > 0) {
            text.push_str(&format!("  {name:<22} {count:>9}\n"));
        }
        text + &self.places()
    }
}
