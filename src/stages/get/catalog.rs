//! Short names of published models that work here, and which part of a captioner each is.

use anyhow::{Result, bail};

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `--clip`
    Image,
    /// `--gpt2`
    Decoder,
}

/// A model of the catalogue.
#[derive(Debug)]
pub struct Entry {
    pub name: &'static str,
    /// `ORG/NAME`
    pub repository: &'static str,
    pub kind: Kind,
    pub about: &'static str,
}

/// An image encoder and a decoder make a captioner once a mapper is trained between them: any of these with any.
pub const CATALOG: &[Entry] = &[
    Entry {
        name: "clip-b32",
        repository: "openai/clip-vit-base-patch32",
        kind: Kind::Image,
        about: "OpenAI's CLIP ViT-B/32: what ClipCap-Chinese uses",
    },
    Entry { name: "clip-b16", repository: "openai/clip-vit-base-patch16", kind: Kind::Image, about: "OpenAI's CLIP ViT-B/16" },
    Entry { name: "clip-l14", repository: "openai/clip-vit-large-patch14", kind: Kind::Image, about: "OpenAI's CLIP ViT-L/14" },
    Entry {
        name: "chinese-clip",
        repository: "OFA-Sys/chinese-clip-vit-base-patch16",
        kind: Kind::Image,
        about: "Chinese-CLIP ViT-B/16; scores Chinese captions too",
    },
    Entry {
        name: "laion-b32",
        repository: "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        kind: Kind::Image,
        about: "open_clip's ViT-B/32, trained on LAION-2B",
    },
    Entry { name: "siglip", repository: "google/siglip-base-patch16-224", kind: Kind::Image, about: "SigLIP ViT-B/16" },
    Entry {
        name: "gpt2-chinese",
        repository: "uer/gpt2-chinese-cluecorpussmall",
        kind: Kind::Decoder,
        about: "Chinese GPT2, 12 layers: what ClipCap-Chinese uses",
    },
    Entry {
        name: "gpt2-chinese-small",
        repository: "uer/gpt2-distil-chinese-cluecorpussmall",
        kind: Kind::Decoder,
        about: "Chinese GPT2, 6 layers",
    },
    Entry {
        name: "gpt2",
        repository: "openai-community/gpt2",
        kind: Kind::Decoder,
        about: "GPT2, English: the original ClipCap's",
    },
    Entry {
        name: "qwen2.5-0.5b",
        repository: "Qwen/Qwen2.5-0.5B",
        kind: Kind::Decoder,
        about: "Qwen 2.5, 0.5 billion parameters",
    },
    Entry {
        name: "qwen3-0.6b",
        repository: "Qwen/Qwen3-0.6B-Base",
        kind: Kind::Decoder,
        about: "Qwen 3, 0.6 billion parameters",
    },
];

/// The models that a name means, with what they are for where the catalogue knows it.
pub fn names(given: &str) -> Result<Vec<(String, Option<Kind>)>> {
    let mut found = Vec::new();
    for word in given.split('+') {
        let entry = CATALOG.iter().find(|entry| entry.name == word || entry.repository == word);
        match entry {
            Some(entry) => found.push((entry.repository.to_string(), Some(entry.kind))),
            None if is_hub_name(word) => found.push((word.to_string(), None)),
            None => {
                let names: Vec<&str> = CATALOG.iter().map(|entry| entry.name).collect();
                bail!("no model is called {word:?}: write ORG/NAME as on the hub, or one of {}", names.join(", "));
            }
        }
    }
    Ok(found)
}

/// `ORG/NAME`: what could lead elsewhere is none.
fn is_hub_name(name: &str) -> bool {
    let plain = |word: &str| {
        !word.is_empty()
            && !word.starts_with(['.', '-'])
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    name.split_once('/').is_some_and(|(org, name)| plain(org) && plain(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_sets_and_names_of_the_hub_are_models() {
        let names = |given: &str| names(given).map(|found| found.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
        assert_eq!(names("clip-b32+gpt2-chinese").unwrap(), ["openai/clip-vit-base-patch32", "uer/gpt2-chinese-cluecorpussmall"]);
        assert_eq!(names("some/model").unwrap(), ["some/model"]);
        assert!(names("clip").unwrap_err().to_string().contains("clip-b32"));
        for wrong in ["../x", "a/b/c", "a/..", "", "-x/y", "a/b+"] {
            assert!(names(wrong).is_err(), "{wrong}");
        }
    }
}
