//! Which columns of a table (or fields of an object) hold what: one rule for every layout and every command.

use super::Columns;

/// Field names that mean an image's id, its file and a caption, where `--columns` says nothing. The first that is there counts.
/// A bare `id` may number anything, so it comes last.
pub const ID_NAMES: [&str; 3] = ["image_id", "img_id", "图片编号"];
/// Numbers anything, so it counts where nothing else names the image.
pub const LAST_ID_NAME: &str = "id";
/// Names of files and paths. A file's name decides over an id.
pub const FILE_NAMES: [&str; 15] = [
    "image_path",
    "file_name",
    "filename",
    "image_name",
    "image",
    "img",
    "path",
    "filepath",
    "图片",
    "图像",
    "图片名",
    "图片名称",
    "图片路径",
    "文件名",
    "文件",
];
/// Names of captions, or of lists of them.
pub const CAPTION_NAMES: [&str; 18] = [
    "caption",
    "captions",
    "caption_zh",
    "text",
    "sentence",
    "sentences",
    "description",
    "raw",
    "comment",
    "说明",
    "描述",
    "中文描述",
    "中文说明",
    "图片说明",
    "图片描述",
    "标题",
    "文本",
    "句子",
];
/// Names of what captions were before they were normalized, where this program says it.
pub const RAW_NAMES: [&str; 2] = ["captions_raw", "caption_raw"];
/// Names of the caption's number within its image.
pub const NUMBER_NAMES: [&str; 4] = ["caption_index", "caption_id", "caption_number", "comment_number"];

/// Where the columns of a table are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// None only where none is needed.
    pub image: Option<usize>,
    /// The column that names files, beside the one of ids or in its place.
    pub file: Option<usize>,
    pub captions: Vec<usize>,
    /// What captions were before they were normalized, in step with them.
    pub raw: Option<usize>,
    pub split: Option<usize>,
    pub number: Option<usize>,
    pub translation: Option<usize>,
    pub source: Option<usize>,
    pub sha256: Option<usize>,
    pub logprob: Option<usize>,
    pub num_tokens: Option<usize>,
    pub finish_reason: Option<usize>,
    pub clip_score: Option<usize>,
    pub rank: Option<usize>,
}

impl Chosen {
    /// Chooses among `names`; `is_text` says whether a column can name an image, which may be missing unless `needs_image`. The error lists the
    /// columns there are.
    pub fn of(names: &[String], columns: &Columns, needs_image: bool, is_text: impl Fn(usize) -> bool) -> Result<Self, String> {
        let list = || {
            let shown = names.iter().map(|name| crate::dataset::normalize::excerpt(name.as_bytes(), 40)).collect::<Vec<_>>();
            format!("the columns are: {}", shown.join(", "))
        };
        let named = |name: &str| names.iter().position(|n| n == name).ok_or_else(|| format!("no column {name}; {}", list()));
        let known = |wanted: &[&str]| wanted.iter().find_map(|w| names.iter().position(|n| n.eq_ignore_ascii_case(w)));
        let known_text = |wanted: &[&str]| {
            wanted.iter().find_map(|w| names.iter().position(|n| n.eq_ignore_ascii_case(w)).filter(|&at| is_text(at)))
        };
        let (image, file) = match &columns.image {
            Some(name) => (Some(named(name)?), None),
            None => match (known_text(&ID_NAMES), known_text(&FILE_NAMES), known_text(&[LAST_ID_NAME])) {
                (Some(at), file, _) => (Some(at), file),
                (None, Some(at), _) => (Some(at), Some(at)),
                (None, None, Some(at)) => (Some(at), None),
                _ if !needs_image => (None, None),
                _ => {
                    return Err(format!(
                        "which column names the image? Say --columns image=A,caption=B (to `prepare` or `score`); {}",
                        list()
                    ));
                }
            },
        };
        // A name that several columns have is that of several captions.
        let all = |name: &str| (0..names.len()).filter(|&at| names[at] == name).collect::<Vec<_>>();
        let captions = match &columns.captions[..] {
            [] => match known(&CAPTION_NAMES) {
                Some(at) => all(&names[at]),
                None => {
                    return Err(format!(
                        "which column is the caption? Say --columns image=A,caption=B (to `prepare` or `score`); {}",
                        list()
                    ));
                }
            },
            wanted => {
                wanted.iter().try_for_each(|name| named(name).map(drop))?;
                wanted.iter().flat_map(|name| all(name)).collect()
            }
        };
        let split =
            columns.split.as_ref().map(|name| named(name)).transpose()?.or_else(|| known(&["split", "划分", "数据集划分"]));
        Ok(Self {
            image,
            file,
            captions,
            raw: known(&RAW_NAMES),
            split,
            number: known(&NUMBER_NAMES),
            translation: known(&["translation"]),
            source: known(&["source"]),
            sha256: known(&["sha256"]),
            logprob: known(&["logprob"]),
            num_tokens: known(&["num_tokens"]),
            finish_reason: known(&["finish_reason"]),
            clip_score: known(&["clip_score"]),
            // Anything may be called so; beside a score it is the score's.
            rank: known(&["clip_score"]).and(known(&["rank"])),
        })
    }
}
