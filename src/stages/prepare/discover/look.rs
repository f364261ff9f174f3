//! A look at one file: what the readers of captions make of it, and which of the images that are here it names.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::language;
use super::{FileFound, Question};
use crate::dataset::assemble::{Assembled, Listed, assemble};
use crate::dataset::captions::{Columns, Encoding, Format, ReadOptions, header_names, likely_encoding, read_captions};
use crate::dataset::splits::SplitRule;
use crate::dataset::tar::called_a_tar;

/// Bytes that tell an encoding.
const HEAD_BYTES: u64 = 1 << 20;
/// Captions that tell a language.
const SAMPLE: usize = 500;

/// A file that was looked at.
#[derive(Debug, Default)]
pub struct Look {
    pub file: FileFound,
    pub path: PathBuf,
    pub prefix: Option<String>,
    /// Where it is not UTF-8.
    pub encoding: Option<Encoding>,
    /// Where its names do not tell, or tell several languages.
    pub columns: Option<Columns>,
    pub notes: Vec<String>,
    pub split: Option<&'static str>,
    /// It names images, line by line, and nothing else.
    pub is_list: bool,
    pub first_fault: Option<String>,
    /// A hash of images and captions, in any order.
    pub content: u64,
}

/// Reads a file as `prepare` would.
pub fn look_at(path: &Path, name: String, prefix: Option<String>, question: &Question, listed: &[Listed]) -> Look {
    let mut look = Look { path: path.into(), prefix, ..Look::default() };
    look.file.name = name;
    let mut head = Vec::new();
    if let Err(error) = File::open(path).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head)) {
        look.file.left = Some(error.to_string());
        return look;
    }
    // Lists of objects in pictures are laid out like captions.
    let is_json = path.extension().is_some_and(|ending| ending == "json");
    if is_json && !mentions_captions(path, &head) {
        look.file.left = Some("JSON without captions".into());
        return look;
    }
    let is_text = !head.starts_with(b"PAR1") && !called_a_tar(path);
    look.encoding = question.encoding.or_else(|| if is_text { likely_encoding(&head) } else { None });
    look.file.encoding = if is_text { look.encoding.map_or("utf-8".into(), Encoding::name) } else { String::new() };
    if is_text && question.columns == Columns::default() {
        look.choose_columns(&head, question.language.as_deref());
    }
    let columns = look.columns.clone().unwrap_or_else(|| question.columns.clone());
    let folders = look.prefix.iter().map(|prefix| (path.to_path_buf(), prefix.clone())).collect();
    let options = ReadOptions { format: question.format, columns, encoding: look.encoding, folders, ..ReadOptions::default() };
    match read_captions(&[path.to_path_buf()], &options) {
        Err(error) => look.file.left = Some(error.to_string().replace(&format!("{}: ", path.display()), "")),
        Ok(captions) => {
            look.first_fault = captions.bad.first().map(|bad| format!("line {}: {}", bad.line, bad.bad.message));
            let has_images = !listed.is_empty();
            look.take(&assemble(captions, has_images.then_some(listed), &SplitRule { own: true, ..SplitRule::default() }));
        }
    }
    if look.file.rows == 0 && is_text {
        look.is_list = names_images(&head, look.encoding, listed);
    }
    look
}

/// Bytes as text: in the encoding given, or the one that they are likely to be in. Also says which.
pub fn decoded(bytes: &[u8], encoding: Option<Encoding>) -> (String, String) {
    let encoding = encoding.or_else(|| likely_encoding(bytes)).unwrap_or(Encoding::UTF_8);
    (encoding.decode(bytes), encoding.name())
}

impl Look {
    /// Of caption columns in several languages, one is taken.
    fn choose_columns(&mut self, head: &[u8], wanted: Option<&str>) {
        let text = decoded(head, self.encoding).0;
        let named: Vec<(String, &str)> =
            header_names(&text).into_iter().filter_map(|name| Some((name.clone(), language::of_column(&name)?))).collect();
        if named.len() < 2 {
            return;
        }
        let language = wanted.unwrap_or("zh");
        let captions: Vec<String> =
            named.iter().filter(|(_, of)| wanted == Some("all") || *of == language).map(|(name, _)| name.clone()).collect();
        let captions = if captions.is_empty() && wanted.is_none() { vec![named[0].0.clone()] } else { captions };
        let others: Vec<&str> = named.iter().filter(|(name, _)| !captions.contains(name)).map(|(_, of)| *of).collect();
        if captions.is_empty() {
            return;
        }
        self.notes.push(match &others[..] {
            [] => format!("captions from {}", captions.join(" and ")),
            others => format!("captions from {} (--language {} takes the other)", captions.join(" and "), others.join(" or ")),
        });
        self.columns = Some(Columns { captions, ..Columns::default() });
    }

    fn take(&mut self, set: &Assembled) {
        let Some(report) = set.captions.files.first() else { return };
        self.file.layout = report.format.name().into();
        if self.prefix.is_some()
            || self.path.file_stem().is_some_and(|stem| stem == "metadata") && report.format != Format::Parquet
        {
            self.file.layout = format!("imagefolder ({})", self.file.layout);
        }
        (self.file.rows, self.file.bad) = (report.captions, report.bad);
        self.split = report.split;
        let mut splits: Vec<&str> =
            set.images.iter().filter(|image| image.captions > 0).filter_map(|image| image.split.as_deref()).collect();
        splits.sort_unstable();
        splits.dedup();
        self.file.split = splits.join(", ");
        let named = set.images.iter().filter(|image| image.captions > 0);
        self.file.named = named.clone().count() as u64;
        self.file.found = named.filter(|image| image.listed.is_some()).count() as u64;
        let num_captions = set.places.len();
        let step = num_captions.div_ceil(SAMPLE).max(1);
        self.file.language = language::of_captions((0..num_captions).step_by(step).map(|at| set.caption(at)));
        for at in 0..num_captions {
            let mut hasher = DefaultHasher::new();
            let image = &set.images[set.places[at].image as usize];
            (image.listed, image.listed.is_none().then_some(&image.id), set.caption(at)).hash(&mut hasher);
            self.content = self.content.wrapping_add(hasher.finish());
        }
    }
}

/// Whether a JSON file says `caption`, `sentences`, or is a map with Chinese in it.
fn mentions_captions(path: &Path, head: &[u8]) -> bool {
    let says = |bytes: &[u8]| {
        ["\"caption", "\"sentences\"", "\"raw\"", "\"text\""]
            .iter()
            .any(|word| memchr::memmem::find(bytes, word.as_bytes()).is_some())
    };
    // Objects in pictures are told by their boxes.
    let is_boxes =
        memchr::memmem::find(head, b"\"annotations\"").is_some() || memchr::memmem::find(head, b"\"images\"").is_some();
    if says(head) || !is_boxes {
        return true;
    }
    let Ok(mut file) = File::open(path) else { return false };
    let (mut block, mut kept) = (vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut block[kept..]) {
            Ok(0) | Err(_) => return false,
            Ok(count) if says(&block[..kept + count]) => return true,
            Ok(count) => {
                // A word may stand across two blocks.
                let end = kept + count;
                let rest = end.saturating_sub(16);
                block.copy_within(rest..end, 0);
                kept = end - rest;
            }
        }
    }
}

/// Whether nearly every line is the name or id of an image that is here.
fn names_images(head: &[u8], encoding: Option<Encoding>, listed: &[Listed]) -> bool {
    let names: std::collections::HashSet<&str> =
        listed.iter().flat_map(|image| [image.id, image.path, image.path.rsplit('/').next().unwrap_or(image.path)]).collect();
    let text = decoded(head, encoding).0;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(1000).collect();
    let known = lines.iter().filter(|line| names.contains(**line)).count();
    !lines.is_empty() && known * 10 >= lines.len() * 9
}
