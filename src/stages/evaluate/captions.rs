//! Captions by image, of any layout that `prepare` reads: the same rows, numbers, splits and ids that a dataset of them has.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};

use crate::dataset::assemble::{Assembled, assemble};
pub use crate::dataset::captions::Details;
use crate::dataset::captions::{BadLine, Captions, Encoding, Format, ReadOptions, Reason, read_captions};
use crate::dataset::splits::{SplitRule, canonical};
use crate::pipeline::Reporter;

/// Which side of the evaluation a file is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Predictions,
    References,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Predictions => "predictions",
            Self::References => "references",
        }
    }
}

/// The captions of one image, the best first where the table ranks them; else in the order of their numbers where the file has any, else in
/// the file's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageCaptions {
    /// As a dataset of the file would have it; see [`naming`](crate::dataset::naming).
    pub id: String,
    /// The image's path or file name, where that is not the id.
    pub alias: Option<String>,
    /// The same as it is written, where only that may be the name of a file.
    pub path: Option<String>,
    /// The hash of the image file's content, in lower-case hex.
    pub sha256: Option<String>,
    pub split: Option<String>,
    pub captions: Vec<String>,
    /// One for each of the captions.
    pub details: Vec<Details>,
}

/// Captions of a set of images, sorted by id.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionSet {
    pub images: Vec<ImageCaptions>,
    /// Rows that hold no caption at all (null), left out.
    pub num_missing: usize,
    /// Splits that were left out.
    other_splits: BTreeSet<String>,
}

impl ImageCaptions {
    /// Puts captions that are ranked in that order.
    fn best_first(&mut self) {
        if self.details.iter().all(|details| details.rank.is_some()) {
            let mut all: Vec<_> = std::mem::take(&mut self.details).into_iter().zip(std::mem::take(&mut self.captions)).collect();
            all.sort_by_key(|(details, _)| details.rank);
            (self.details, self.captions) = all.into_iter().unzip();
        }
    }
}

impl CaptionSet {
    pub fn new(images: Vec<ImageCaptions>) -> Self {
        Self { images, num_missing: 0, other_splits: BTreeSet::new() }
    }
}

/// A longer caption is a fault of the file; the comparison of two sequences takes time by the product of their lengths.
pub const MAX_CAPTION_BYTES: usize = 64 << 10;

/// What is read of a file, and how.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    pub role: Role,
    /// Only captions of this split.
    pub split: Option<&'a str>,
    /// Of text that is not UTF-8.
    pub encoding: Option<Encoding>,
}

impl Reading<'_> {
    /// Everything of a file, in UTF-8.
    pub fn of(role: Role) -> Self {
        Self { role, split: None, encoding: None }
    }
}

/// Reads captions from a dataset, the folder of a caption table, or a file of any layout.
///
/// Lines of references that hold no caption are counted in a warning, as `prepare` tells them; a table of predictions has none.
///
/// # Errors
/// A file that is no table of captions, or has none (of that split); a bad line of predictions.
pub fn read(path: &Path, reading: Reading, reporter: &dyn Reporter) -> Result<CaptionSet> {
    let set = read_all(path, reading, reporter)?;
    if set.images.is_empty() {
        match reading.split {
            Some(split) => {
                let others: Vec<&str> = set.other_splits.iter().map(String::as_str).collect();
                bail!("{} holds no captions of the split {split}; there are: {}", path.display(), others.join(", "))
            }
            None => bail!("{} holds no captions", path.display()),
        }
    }
    Ok(set)
}

/// As [`read`], also where there are no captions: every image of a run may have failed.
pub fn read_all(path: &Path, reading: Reading, reporter: &dyn Reporter) -> Result<CaptionSet> {
    let options = ReadOptions {
        encoding: reading.encoding,
        empty: reading.role == Role::Predictions,
        details: true,
        member: Some(reading.role.name()),
        ..ReadOptions::default()
    };
    let mut found = read_captions(&[path.to_path_buf()], &options)?;
    let (missing, bad): (Vec<BadLine>, Vec<BadLine>) =
        std::mem::take(&mut found.bad).into_iter().partition(|line| line.bad.reason == Reason::NullCaption);
    tell(path, reading.role, &found, &bad, reporter)?;
    let rule = SplitRule { own: true, ..SplitRule::default() };
    let mut set = assemble(found, None, &rule);
    if let Some(line) = set.captions.bad.first() {
        let (count, message) = (set.captions.bad.len(), &line.bad.message);
        reporter.warn(&format!("{}: {count} lines left out; the first is line {} ({message})", path.display(), line.line));
    }
    let mut result = CaptionSet { num_missing: missing.len(), ..CaptionSet::new(gather(path, &mut set)?) };
    if let Some(wanted) = reading.split.map(canonical) {
        if !result.images.is_empty() && result.images.iter().all(|image| image.split.is_none()) {
            bail!("{} does not say which split a caption is of, and --split was given", path.display());
        }
        let is_wanted = |image: &ImageCaptions| image.split.as_ref() == Some(&wanted);
        result.other_splits = result.images.iter().filter(|image| !is_wanted(image)).filter_map(|i| i.split.clone()).collect();
        result.images.retain(is_wanted);
    }
    Ok(result)
}

/// Bad lines: a warning for what people wrote, the end for a program's table.
fn tell(path: &Path, role: Role, found: &Captions, bad: &[BadLine], reporter: &dyn Reporter) -> Result<()> {
    let Some(first) = bad.first() else { return Ok(()) };
    let source = match &found.files[..] {
        [_] => path.display().to_string(),
        files => format!("{}: {}", path.display(), files[first.file as usize].source),
    };
    let (count, line, message) = (bad.len(), first.line, &first.bad.message);
    if role == Role::Predictions {
        bail!("{source}, line {line}: {message}");
    }
    reporter.warn(&format!("{source}: {count} lines hold no caption; the first is line {line} ({message})"));
    Ok(())
}

/// The captions of each image. Text stays as it is in the file, except that segmented words are joined.
fn gather(path: &Path, set: &mut Assembled) -> Result<Vec<ImageCaptions>> {
    let image = |image: &mut crate::dataset::assemble::Image| ImageCaptions {
        id: std::mem::take(&mut image.id),
        alias: image.reference.take(),
        path: image.written.take(),
        split: image.split.take(),
        ..ImageCaptions::default()
    };
    let mut images: Vec<ImageCaptions> = set.images.iter_mut().map(image).collect();
    for (at, place) in set.places.iter().enumerate() {
        let (batch, row) = set.row(at);
        let is_segmented = set.captions.files[place.file as usize].format == Format::FlickrCn;
        let caption = batch.get(if is_segmented { row.caption } else { row.raw });
        let image = &mut images[place.image as usize];
        if caption.len() > MAX_CAPTION_BYTES {
            let (id, bytes) = (&image.id, caption.len());
            bail!(
                "{}, line {}: the caption of {id} has {bytes} bytes, and {MAX_CAPTION_BYTES} are the most: is the file damaged?",
                path.display(),
                place.line
            );
        }
        let details = set.details(at).cloned().unwrap_or_default();
        image.captions.push(caption.into());
        image.sha256 = image.sha256.take().or_else(|| details.sha256.clone());
        image.details.push(details);
    }
    // A name all of whose lines were left out is no image.
    images.retain(|image| !image.captions.is_empty());
    images.iter_mut().for_each(ImageCaptions::best_first);
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::pipeline::Silent;

    fn read_as(role: Role, name: &str, text: &str, split: Option<&str>) -> Result<CaptionSet> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(name);
        std::fs::write(&path, text)?;
        read(&path, Reading { split, ..Reading::of(role) }, &Silent)
    }

    /// `id: caption | caption` for each image.
    fn lines(set: &CaptionSet) -> Vec<String> {
        set.images.iter().map(|image| format!("{}: {}", image.id, image.captions.join(" | "))).collect()
    }

    #[test]
    fn text_layouts_give_the_same_captions() {
        let wanted = ["a: 一只狗 | 黑狗", "b: two cats"];
        let texts = [
            ("t.tsv", "b.jpg\ttwo cats\r\na.jpg\t一只狗\t黑狗\r\n"),
            ("t.txt", "\u{feff}a.jpg#0\t一只狗\nb.jpg#0 two cats\n\na.jpg#1\t黑狗\n"),
            ("t.txt", "a.jpg#zhb#1 黑 狗\na.jpg#zhb#0 一 只 狗\nb.jpg#zhb#0 two cats\n"),
            ("t.txt", "a.jpg#zh#0 一:CD 只:M 狗:NN\na.jpg#zh#1 黑:JJ 狗:NN\nb.jpg#zh#0 two:CD cats:NNS\n"),
            ("t.csv", "caption,image_id,caption_id\n黑狗,a.jpg,1\n一只狗,a.jpg,0\n\"two cats\",b.jpg,0\n"),
            (
                "t.jsonl",
                "{\"image_id\":\"a.jpg\",\"caption\":\"一只狗\"}\n{\"file_name\":\"b.jpg\",\"text\":\"two cats\"}\n{\"image_id\":\"a.jpg\",\"captions\":[\"黑狗\"]}\n",
            ),
            ("t.json", r#"{"a.jpg": ["一只狗", {"caption": "黑狗"}], "b.jpg": "two cats"}"#),
            ("t.json", r#"{"references": {"a.jpg": ["一只狗", "黑狗"], "b.jpg": ["two cats"]}, "predictions": {"c": "x"}}"#),
            (
                "t.json",
                r#"[{"image_id":"a.jpg","caption":"一只狗"},{"image_id":"b.jpg","caption":"two cats"},{"image_id":"a.jpg","caption":"黑狗"}]"#,
            ),
        ];
        for (name, text) in texts {
            assert_eq!(lines(&read_as(Role::References, name, text, None).unwrap()), wanted, "{text}");
            if !text.contains("\"references\"") {
                assert_eq!(lines(&read_as(Role::Predictions, name, text, None).unwrap()), wanted, "{text}");
            }
        }
    }

    #[test]
    fn coco_annotations_bring_file_names() {
        let text = r#"{"images":[{"id":42,"file_name":"COCO_val2014_000000000042.jpg"}],
            "annotations":[{"id":1,"image_id":42,"caption":"狗"},{"id":2,"image_id":42,"caption":"猫"}]}"#;
        let set = read_as(Role::References, "t.json", text, None).unwrap();
        assert_eq!(lines(&set), ["42: 狗 | 猫"]);
        assert_eq!(set.images[0].alias.as_deref(), Some("COCO_val2014_000000000042.jpg"));
    }

    #[test]
    fn karpathy_files_have_splits() {
        let text = r#"{"images":[{"filename":"a.jpg","split":"test","sentences":[{"raw":"狗"},{"raw":"猫"}]},
            {"filename":"b.jpg","split":"train","sentences":[{"raw":"人"}]}], "dataset":"x"}"#;
        let all = read_as(Role::References, "t.json", text, None).unwrap();
        assert_eq!(all.images.len(), 2);
        let test = read_as(Role::References, "t.json", text, Some("test")).unwrap();
        assert_eq!(test.images[0].captions, ["狗", "猫"]);
        assert_eq!(test.images.len(), 1);
        let error = read_as(Role::References, "t.tsv", "a.jpg\t狗\n", Some("test")).unwrap_err();
        assert!(format!("{error:#}").contains("--split"));
    }

    #[test]
    fn details_stay_with_their_captions() {
        let csv = "image_id,image_path,sha256,caption_index,caption,logprob,num_tokens,finish_reason,split,clip_score\n\
            a,a.jpg,00ff,1,黑狗,-3.25,3,length,,0.25\na,a.jpg,00ff,0,一只狗,-1.5,4,eos,test,0.25\n";
        let jsonl = "{\"image_id\":\"a\",\"image_path\":\"a.jpg\",\"sha256\":\"00ff\",\"caption_index\":1,\"caption\":\"黑狗\",\"logprob\":-3.25,\"num_tokens\":3,\"finish_reason\":\"length\",\"clip_score\":0.25}\n\
            {\"image_id\":\"a\",\"sha256\":\"00ff\",\"caption_index\":0,\"caption\":\"一只狗\",\"logprob\":-1.5,\"num_tokens\":4,\"finish_reason\":\"eos\",\"split\":\"test\",\"clip_score\":0.25}\n";
        let details = |logprob, num_tokens, reason: &str| Details {
            logprob: Some(logprob),
            num_tokens: Some(num_tokens),
            finish_reason: Some(reason.into()),
            sha256: Some("00ff".into()),
            clip_score: Some(0.25),
            rank: None,
            raw: None,
        };
        let wanted = ImageCaptions {
            id: "a".into(),
            alias: Some("a.jpg".into()),
            path: None,
            sha256: Some("00ff".into()),
            split: Some("test".into()),
            captions: vec!["一只狗".into(), "黑狗".into()],
            details: vec![details(-1.5, 4, "eos"), details(-3.25, 3, "length")],
        };
        for (name, text) in [("t.csv", csv), ("t.jsonl", jsonl)] {
            assert_eq!(read_as(Role::Predictions, name, text, None).unwrap().images, std::slice::from_ref(&wanted), "{name}");
        }
        let error = read_as(Role::Predictions, "t.csv", "image_id,caption,logprob\na,狗,much\n", None).unwrap_err();
        assert!(format!("{error:#}").contains("logprob"), "{error:#}");
    }

    #[test]
    fn ranked_captions_come_best_first() {
        let csv = "image_id,caption_index,caption,clip_score,rank\na,0,甲,0.1,2\na,1,乙,0.3,1\nb,2,丙,,1\n";
        let jsonl = "{\"image_id\":\"a\",\"caption_index\":0,\"caption\":\"甲\",\"clip_score\":0.1,\"rank\":2}\n\
            {\"image_id\":\"a\",\"caption_index\":1,\"caption\":\"乙\",\"clip_score\":0.3,\"rank\":1}\n\
            {\"image_id\":\"b\",\"caption_index\":2,\"caption\":\"丙\",\"clip_score\":null,\"rank\":1}\n";
        for (name, text) in [("t.csv", csv), ("t.jsonl", jsonl)] {
            let set = read_as(Role::Predictions, name, text, None).unwrap();
            assert_eq!(lines(&set), ["a: 乙 | 甲", "b: 丙"], "{name}");
            let scores: Vec<_> = set.images.iter().flat_map(|image| image.details.iter().map(|d| d.clip_score)).collect();
            assert_eq!(scores, [Some(0.3), Some(0.1), None], "{name}");
        }
        // A column of that name alone says nothing of captions.
        let csv = "image_id,caption,rank\na,甲,2\na,乙,1\n";
        assert_eq!(lines(&read_as(Role::Predictions, "t.csv", csv, None).unwrap()), ["a: 甲 | 乙"]);
    }

    #[test]
    fn files_that_share_an_id_are_images_of_their_own() {
        let text = "image_id,image_path,caption\na,a.jpg,甲\na,a.png,乙\na,a.jpg,丙\na,a.png,丁\n";
        assert_eq!(lines(&read_as(Role::Predictions, "t.csv", text, None).unwrap()), ["a: 甲 | 丙", "a.png: 乙 | 丁"]);
    }

    #[test]
    fn an_unknown_split_is_named_beside_those_there_are() {
        let text = r#"{"images":[{"filename":"a.jpg","split":"test","sentences":[{"raw":"狗"}]}]}"#;
        let error = read_as(Role::References, "t.json", text, Some("val")).unwrap_err();
        assert!(format!("{error:#}").contains("split val; there are: test"), "{error:#}");
    }

    #[test]
    fn an_empty_caption_is_a_prediction_and_no_reference() {
        for (name, text) in [
            ("t.csv", "image_id,caption\na,\nb,狗\n"),
            ("t.jsonl", "{\"image_id\":\"a\",\"caption\":\"\"}\n{\"image_id\":\"b\",\"caption\":\"狗\"}\n"),
        ] {
            assert_eq!(lines(&read_as(Role::Predictions, name, text, None).unwrap()), ["a: ", "b: 狗"]);
            assert_eq!(lines(&read_as(Role::References, name, text, None).unwrap()), ["b: 狗"]);
        }
        assert_eq!(lines(&read_as(Role::Predictions, "t.tsv", "a\t\n", None).unwrap()), ["a: "]);
    }

    #[test]
    fn faults_name_file_and_place() {
        let cases = [
            ("t.tsv", "a.jpg\t狗\nno caption here\n", "line 2"),
            ("t.csv", "id,text\n", "no captions"),
            ("t.csv", "a,b\n1,2\n", "a, b"),
            ("t.jsonl", "{\"image_id\":1,\"caption\":\"狗\"}\n[]\n", "line 2"),
            ("t.json", "{\"a\": 5}", "a"),
            ("t.json", "{\"a\": ", "line 1"),
            ("t.json", "[{\"image_id\": 1.5, \"caption\": \"狗\"}]", "image_id"),
            ("t.json", "[{\"image_id\": \"\\ud800\", \"caption\": \"狗\"}]", "t.json"),
            ("t.docx", "a", ".parquet"),
            ("t.tsv", "", "no captions"),
        ];
        for (name, text, expected) in cases {
            let message = format!("{:#}", read_as(Role::Predictions, name, text, None).unwrap_err());
            assert!(message.contains(expected) && message.contains(name), "{text}: {message}");
        }
        let long = format!("a\t{}\n", "狗".repeat(MAX_CAPTION_BYTES));
        assert!(format!("{:#}", read_as(Role::Predictions, "t.tsv", &long, None).unwrap_err()).contains("line 1"));
    }
}
