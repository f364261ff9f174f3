//! What is worth a look in a table of captions, gathered while it is written: empty and looping captions, the worst, those that repeat.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Result;
use serde_json::{Value as Json, json};

use super::value::Captions;
use crate::generation::FinishReason;
use crate::html::chart::thousands;
use crate::pipeline::{Build, Entry, Record, Sink};

/// Worst captions and most repeated ones that are told.
const TOLD: usize = 3;

/// Different captions that are counted at a time: what bounds the memory.
const COUNTED: usize = 4096;

/// Characters of a caption in the summary.
const CHARACTERS: usize = 60;

/// What a table holds, in a few numbers and examples.
#[derive(Debug, Default)]
pub struct Digest {
    images: u64,
    captions: u64,
    empty: u64,
    loops: u64,
    /// Lowest score, or where there is none lowest log-probability per token, first.
    worst: Vec<Worst>,
    repeated: Repeated,
}

#[derive(Debug, Clone, PartialEq)]
struct Worst {
    value: f64,
    is_score: bool,
    image_path: String,
    caption: String,
}

/// How many images have a caption, for those that many have (Misra and Gries): numbers are at most `short` too low, and exact
/// while there are few different captions.
#[derive(Debug, Default)]
struct Repeated {
    counts: HashMap<String, u64>,
    short: u64,
}

impl Repeated {
    fn add(&mut self, caption: &str) {
        if let Some(count) = self.counts.get_mut(caption) {
            *count += 1;
        } else if self.counts.len() < COUNTED {
            self.counts.insert(caption.into(), 1);
        } else {
            self.short += 1;
            self.counts.retain(|_, count| {
                *count -= 1;
                *count > 0
            });
        }
    }

    /// The most frequent captions that several images have.
    fn top(&self) -> Vec<(&str, u64)> {
        let mut top: Vec<(&str, u64)> =
            self.counts.iter().filter(|(_, count)| **count > 1).map(|(caption, count)| (caption.as_str(), *count)).collect();
        top.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        top.truncate(TOLD);
        top
    }
}

impl Digest {
    /// Takes an image's captions.
    pub fn add(&mut self, image_path: &str, captions: &Captions) {
        self.images += 1;
        for (at, caption) in captions.texts.iter().enumerate() {
            self.captions += 1;
            self.loops += u64::from(caption.finish_reason == FinishReason::Loop);
            if caption.text.trim().is_empty() {
                self.empty += 1;
                continue;
            }
            if captions.texts[..at].iter().all(|before| before.text != caption.text) {
                self.repeated.add(&caption.text);
            }
            let is_score = caption.clip_score.is_some();
            let per_token = caption.logprob / f64::from(caption.num_tokens.max(1));
            let value = caption.clip_score.map_or(per_token, f64::from);
            if self.worst.len() < TOLD || self.worst.last().is_some_and(|last| value < last.value) {
                let place = self.worst.partition_point(|other| other.value <= value);
                let worst = Worst { value, is_score, image_path: image_path.into(), caption: caption.text.clone() };
                self.worst.insert(place, worst);
                self.worst.truncate(TOLD);
            }
        }
    }

    /// Lines of the closing summary.
    pub fn to_text(&self) -> String {
        let mut facts = Vec::new();
        if self.empty > 0 {
            facts.push(format!("{} empty", thousands(self.empty)));
        }
        if self.loops > 0 {
            facts.push(format!("{} ended in a loop", thousands(self.loops)));
        }
        let mut text = String::new();
        if !facts.is_empty() {
            text += &format!("captions {}: {}\n", thousands(self.captions), facts.join(", "));
        }
        for (caption, images) in self.repeated.top() {
            let least = if self.repeated.short > 0 { "at least " } else { "" };
            let share = images as f64 / self.images.max(1) as f64;
            let doubt = if share >= 0.5 && self.images >= 10 { ": has the model collapsed?" } else { "" };
            text +=
                &format!("repeated on {least}{} images ({:.0}%{doubt}): {}\n", thousands(images), share * 100.0, short(caption));
        }
        for (at, worst) in self.worst.iter().enumerate() {
            let head = if at == 0 { "worst" } else { "" };
            let value =
                if worst.is_score { format!("clip_score {:.3}", worst.value) } else { format!("{:.2} per token", worst.value) };
            text += &format!("{head:<9}{} ({value}): {}\n", worst.image_path, short(&worst.caption));
        }
        text
    }

    /// The same as pairs of the summary.
    pub fn to_json(&self) -> serde_json::Map<String, Json> {
        let repeated: Vec<Json> =
            self.repeated.top().iter().map(|(caption, images)| json!({"caption": caption, "images": images})).collect();
        let worst: Vec<Json> = self
            .worst
            .iter()
            .map(|w| {
                let measure = if w.is_score { "clip_score" } else { "logprob_per_token" };
                json!({"image_path": w.image_path, "caption": w.caption, measure: w.value})
            })
            .collect();
        let pairs = [
            ("captions", json!(self.captions)),
            ("empty_captions", json!(self.empty)),
            ("loops", json!(self.loops)),
            ("repeated", json!(repeated)),
            ("worst", json!(worst)),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }
}

/// A caption in one line that is not too long.
fn short(caption: &str) -> String {
    let mut line: String = caption.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CHARACTERS).collect();
    if caption.chars().count() > CHARACTERS {
        line.push('…');
    }
    line
}

/// A table under construction whose rows are looked at on their way.
pub struct Digested<'a, K> {
    pub table: K,
    pub digest: &'a Mutex<Digest>,
}

impl<K: Sink<Captions>> Sink<Captions> for Digested<'_, K> {
    fn add(&mut self, entry: &Entry, record: &Record<Captions>) -> Result<()> {
        if let Ok(captions) = &record.result {
            self.digest.lock().unwrap_or_else(|e| e.into_inner()).add(&record.image_path, captions);
        }
        self.table.add(entry, record)
    }

    fn weight(&self, captions: &Captions) -> u64 {
        self.table.weight(captions)
    }
}

impl<K: Build<Captions>> Build<Captions> for Digested<'_, K> {
    fn finish(self) -> Result<Vec<PathBuf>> {
        self.table.finish()
    }
}

/// Commands that look at a finished table of these folders' images.
pub fn next(table: &Path, images: &[PathBuf]) -> Vec<String> {
    use crate::stages::summary::quoted;
    let folders: Vec<String> = images.iter().map(|path| quoted(path)).collect();
    let images = if folders.is_empty() { String::new() } else { format!(" --images {}", folders.join(" ")) };
    vec![format!("clipcap report {}{images} -o {}", quoted(table), quoted(&table.with_extension("html")))]
}

#[cfg(test)]
mod tests {
    use super::super::value::CaptionText;
    use super::*;

    fn captions(texts: &[(&str, f64, i32, FinishReason)]) -> Captions {
        let text = |&(text, logprob, num_tokens, finish_reason): &(&str, f64, i32, FinishReason)| CaptionText {
            text: text.into(),
            logprob,
            num_tokens,
            finish_reason,
            index: 0,
            clip_score: None,
        };
        Captions { texts: texts.iter().map(text).collect(), damaged: false }
    }

    #[test]
    fn the_worst_the_empty_and_the_repeated_are_told() {
        let mut digest = Digest::default();
        let eos = FinishReason::Eos;
        for at in 0..8 {
            digest.add(&format!("{at}.jpg"), &captions(&[("一只狗", -1.0 - f64::from(at), 4, eos), ("一只狗", -9.0, 90, eos)]));
        }
        digest.add("loop.jpg", &captions(&[("狗狗狗狗", -20.0, 4, FinishReason::Loop)]));
        digest.add("empty.jpg", &captions(&[("", -0.1, 1, eos)]));
        let text = digest.to_text();
        assert!(text.starts_with("captions 18: 1 empty, 1 ended in a loop\n"), "{text}");
        assert!(text.contains("repeated on 8 images (80%: has the model collapsed?): 一只狗\n"), "{text}");
        assert!(text.contains("worst    loop.jpg (-5.00 per token): 狗狗狗狗\n         7.jpg (-2.00 per token)"), "{text}");
        let json = digest.to_json();
        assert_eq!((json["loops"].as_u64(), json["repeated"][0]["images"].as_u64()), (Some(1), Some(8)));
        assert_eq!(json["worst"].as_array().unwrap().len(), TOLD);
    }

    #[test]
    fn many_different_captions_take_no_more_memory() {
        let mut repeated = Repeated::default();
        for at in 0..40_000 {
            repeated.add(&at.to_string());
            if at % 4 == 0 {
                repeated.add("一只狗");
            }
        }
        assert!(repeated.counts.len() <= COUNTED);
        let (caption, images) = repeated.top()[0];
        assert!(caption == "一只狗" && images + repeated.short >= 10_000 && images <= 10_000, "{images} {}", repeated.short);
    }
}
