//! Captions by image, read from any of the layouts people keep them in.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::builder::Builder;
use super::{annotated, delimited, json, parquet};
use crate::dataset::captions::Format;
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

/// The captions of one image: in caption_index order where the file has one, else in the file's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageCaptions {
    pub id: String,
    /// The image's path or file name, where the file gives it besides an id.
    pub alias: Option<String>,
    /// The hash of the image file's content, in lower-case hex.
    pub sha256: Option<String>,
    pub split: Option<String>,
    pub captions: Vec<String>,
    /// One for each of the captions.
    pub details: Vec<Details>,
}

/// What a table says of a caption besides its text; nothing where it has no such column.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    pub logprob: Option<f64>,
    pub num_tokens: Option<i64>,
    pub finish_reason: Option<String>,
}

/// Captions of a set of images, sorted by id.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionSet {
    pub images: Vec<ImageCaptions>,
    /// Rows that hold no caption at all (null), left out.
    pub num_missing: usize,
    /// Splits that were left out.
    pub(super) other_splits: BTreeSet<String>,
}

impl CaptionSet {
    pub fn new(images: Vec<ImageCaptions>) -> Self {
        Self { images, num_missing: 0, other_splits: BTreeSet::new() }
    }

    fn splits(&self) -> String {
        self.other_splits.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

/// No line of a caption file is longer.
const MAX_LINE_BYTES: u64 = 4 << 20;
/// JSON files are held in memory whole; COCO's largest annotation file has about 100 MB.
const MAX_JSON_BYTES: u64 = 2 << 30;

/// Reads captions from a dataset or table folder, or from a file: Parquet; JSON (COCO results and annotations, Karpathy's, a map from
/// id to captions); CSV, TSV and JSON lines; li-xirong's text. References in text come through the parsers of `prepare`.
/// `split` keeps one split, where the file knows of any.
///
/// # Errors
/// A file that is no table of captions, or has none (of that split).
pub fn read(path: &Path, role: Role, split: Option<&str>, reporter: &dyn Reporter) -> Result<CaptionSet> {
    let set = read_all(path, role, split, reporter)?;
    if set.images.is_empty() {
        match split {
            Some(split) => bail!("{} holds no captions of the split {split}; there are: {}", path.display(), set.splits()),
            None => bail!("{} holds no captions", path.display()),
        }
    }
    Ok(set)
}

/// As [`read`], also where there are no captions: every image of a run may have failed.
pub fn read_all(path: &Path, role: Role, split: Option<&str>, reporter: &dyn Reporter) -> Result<CaptionSet> {
    let mut builder = Builder::default();
    if path.is_dir() {
        for file in tables_of(path)? {
            parquet::read(&file, split, &mut builder)?;
        }
        return Ok(builder.finish());
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let written = role == Role::References;
    match extension.as_str() {
        "parquet" => parquet::read(path, split, &mut builder)?,
        "csv" | "jsonl" | "ndjson" if written => annotated::read(path, None, split, &mut builder, reporter)?,
        "tsv" | "txt" if delimited::is_li_xirong(path)? => annotated::read(path, None, split, &mut builder, reporter)?,
        "json" => {
            let is_karpathy =
                json::read(&read_whole(path, MAX_JSON_BYTES)?, path, role, split, &mut builder)? == json::Found::Karpathy;
            if is_karpathy {
                annotated::read(path, Some(Format::Karpathy), split, &mut builder, reporter)?;
            }
        }
        "csv" | "jsonl" | "ndjson" | "tsv" | "txt" => {
            refuse_split(split, path)?;
            match extension.as_str() {
                "csv" => delimited::read_csv(path, &mut builder)?,
                "tsv" | "txt" => delimited::read_tsv(path, &mut builder)?,
                _ => delimited::read_jsonl(path, &mut builder)?,
            }
        }
        _ => bail!(
            "{}: cannot tell what this is by its name: a folder, .parquet, .csv, .tsv, .txt (ID#k<TAB>caption), .jsonl or .json is wanted",
            path.display()
        ),
    }
    Ok(builder.finish())
}

pub(super) fn refuse_split(split: Option<&str>, path: &Path) -> Result<()> {
    if split.is_some() {
        bail!("{} does not say which split a caption is of, and --split was given", path.display());
    }
    Ok(())
}

/// A dataset's `captions.parquet`, or the numbered parts of a caption table.
pub fn tables_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let captions = folder.join("captions.parquet");
    if captions.exists() {
        return Ok(vec![captions]);
    }
    let mut parts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".parquet") && !name.ends_with("errors.parquet") && !name.starts_with("images") {
            parts.push(path);
        }
    }
    parts.sort();
    if parts.is_empty() {
        bail!("{} holds neither captions.parquet nor parts of a caption table", folder.display());
    }
    Ok(parts)
}

fn read_whole(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > limit {
        bail!("{} is larger than {limit} bytes: use a Parquet or JSON-lines file", path.display());
    }
    Ok(bytes)
}

/// Calls `visit` with every line of a UTF-8 file and its number from 1, without line ends and byte order mark; empty lines are left out.
pub(super) fn for_each_line(path: &Path, mut visit: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    let mut reader =
        BufReader::with_capacity(1 << 18, File::open(path).with_context(|| format!("cannot open {}", path.display()))?);
    let mut buffer = Vec::new();
    for number in 1.. {
        buffer.clear();
        let at = || format!("{}, line {number}", path.display());
        if (&mut reader).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut buffer).with_context(at)? == 0 {
            break;
        }
        if buffer.len() as u64 > MAX_LINE_BYTES {
            bail!("{}: the line is longer than {MAX_LINE_BYTES} bytes", at());
        }
        let line = std::str::from_utf8(&buffer).with_context(|| format!("{}: not UTF-8 text", at()))?;
        let line = if number == 1 { line.trim_start_matches('\u{feff}') } else { line };
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if !line.trim().is_empty() {
            visit(number, line).with_context(at)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::pipeline::Silent;
    use crate::stages::evaluate::builder::MAX_CAPTION_BYTES;

    fn read_as(role: Role, name: &str, text: &str, split: Option<&str>) -> Result<CaptionSet> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(name);
        fs::write(&path, text)?;
        read(&path, role, split, &Silent)
    }

    /// `id: caption | caption` for each image.
    fn lines(set: &CaptionSet) -> Vec<String> {
        set.images.iter().map(|image| format!("{}: {}", image.id, image.captions.join(" | "))).collect()
    }

    #[test]
    fn text_layouts_give_the_same_captions() {
        let wanted = ["a.jpg: 一只狗 | 黑狗", "b.jpg: two cats"];
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
        let csv = "image_id,image_path,sha256,caption_index,caption,logprob,num_tokens,finish_reason,split\n\
            a,a.jpg,00ff,1,黑狗,-3.25,3,length,\na,a.jpg,00ff,0,一只狗,-1.5,4,eos,test\n";
        let jsonl = "{\"image_id\":\"a\",\"image_path\":\"a.jpg\",\"sha256\":\"00ff\",\"caption_index\":1,\"caption\":\"黑狗\",\"logprob\":-3.25,\"num_tokens\":3,\"finish_reason\":\"length\"}\n\
            {\"image_id\":\"a\",\"caption_index\":0,\"caption\":\"一只狗\",\"logprob\":-1.5,\"num_tokens\":4,\"finish_reason\":\"eos\",\"split\":\"test\"}\n";
        let details = |logprob, num_tokens, reason: &str| Details {
            logprob: Some(logprob),
            num_tokens: Some(num_tokens),
            finish_reason: Some(reason.into()),
        };
        let wanted = ImageCaptions {
            id: "a".into(),
            alias: Some("a.jpg".into()),
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
