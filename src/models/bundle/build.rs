//! Making a bundle: built whole in a folder beside its place, then renamed there.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::manifest::Fingerprints;
use super::{Bundle, BundleError, Configs, FORMAT, MANIFEST, Manifest, PartRecord, Provenance, TokenizerFacts, WEIGHTS};
use crate::files;
use crate::models::graphs;
use crate::models::part::{Content, Part, PartFacts, PartTensor};
use crate::models::tensors::TensorSpec;
use crate::text::{Endings, Tokenizer, Vocabulary};

/// Everything a bundle is made of.
pub struct BundlePlan<'a> {
    pub configs: Configs,
    /// Whether the mapper takes embeddings of unit length.
    pub normalized: bool,
    pub vocabulary: Vocabulary,
    pub endings: Endings,
    /// See [`Manifest::decoder_scope`].
    pub decoder_scope: String,
    /// See [`Manifest::prompt`].
    pub prompt: Option<String>,
    pub clip: PartPlan<'a>,
    pub mapper: PartPlan<'a>,
    pub gpt2: PartPlan<'a>,
    /// Files to keep beside CLIP's weights under their own names; configurations not among them are written.
    pub clip_files: Vec<PathBuf>,
    /// The same for GPT2.
    pub gpt2_files: Vec<PathBuf>,
}

/// One weight file of a bundle to be.
pub enum PartPlan<'a> {
    New {
        part: Part<'a>,
        source: Provenance,
    },
    /// A copy of another bundle's file, with what is recorded of it.
    Copied {
        path: PathBuf,
        record: PartRecord,
    },
}

/// Builds a bundle at `out`. What is there is left alone unless it is a bundle and `overwrite` is set; a failure leaves it as it was.
pub fn build(out: &Path, overwrite: bool, plan: &BundlePlan) -> Result<Bundle, BundleError> {
    check_place(out, overwrite)?;
    plan.configs.validate(out)?;
    let staging = Staging::beside(out)?;
    let folder = &staging.0;
    let tokenizer = tokenizer_facts(&plan.vocabulary, &plan.endings)?;
    let clip = write_part(folder, "clip", &plan.clip)?;
    let mapper = write_part(folder, "mapper", &plan.mapper)?;
    let gpt2 = write_part(folder, "gpt2", &plan.gpt2)?;
    write_files(folder, plan)?;
    graphs::write(folder, &plan.configs.clip, &plan.configs.mapper, &plan.configs.decoder)?;
    let fingerprints = Fingerprints {
        configs: &plan.configs,
        clip: &clip.facts,
        mapper: &mapper.facts,
        gpt2: &gpt2.facts,
        vocabulary: &plan.vocabulary,
        endings: &plan.endings,
        prompt: plan.prompt.as_deref(),
        normalized: plan.normalized,
    };
    let manifest = Manifest {
        format: FORMAT.into(),
        mapper_kind: plan.configs.mapper.kind,
        prefix_len: plan.configs.mapper.prefix_len,
        normalized: plan.normalized,
        fingerprint: fingerprints.whole(),
        embedding_fingerprint: fingerprints.embedding(),
        preprocessing: plan.configs.preprocessor.clone(),
        tokenizer,
        decoder_scope: plan.decoder_scope.clone(),
        prompt: plan.prompt.clone(),
        parts: [("clip", clip), ("gpt2", gpt2), ("mapper", mapper)].map(|(name, record)| (name.to_string(), record)).into(),
        int8: None,
    };
    let manifest_path = folder.join(MANIFEST);
    files::write_json(&manifest_path, &manifest).map_err(BundleError::io(manifest_path))?;
    staging.publish(out)?;
    Bundle::open(out)
}

impl Bundle {
    /// A bundle like this one with other weights: `weights` gives a tensor's new values by its checkpoint name
    /// (`clip_project.*`, the decoder's behind its scope, such as `gpt2.transformer.*`, `vision_model.*` and CLIP's others), or None where it stays. A part none of whose tensors changes is copied.
    pub fn with_weights<'w>(
        &self,
        out: &Path,
        overwrite: bool,
        source: &Provenance,
        weights: impl Fn(&str) -> Option<&'w [f32]>,
    ) -> Result<Self, BundleError> {
        let stored = |part: &str| crate::models::weights::WeightSource::open(&self.weights_path(part));
        let (clip_stored, mapper_stored, gpt2_stored) = (stored("clip")?, stored("mapper")?, stored("gpt2")?);
        let replace = |part: &str, prefix: &str, specs: Vec<TensorSpec>, stored| -> Result<PartPlan<'_>, BundleError> {
            let record = self.part(part)?.clone();
            if specs.iter().all(|spec| weights(&format!("{prefix}{}", spec.name)).is_none()) {
                return Ok(PartPlan::Copied { path: self.weights_path(part), record });
            }
            let tensors = replaced_tensors(&self.weights_path(part), stored, specs, |name| weights(&format!("{prefix}{name}")))?;
            Ok(PartPlan::New { part: Part::new(tensors), source: source.clone() })
        };
        let [(_, clip_specs), (_, gpt2_specs), (_, mapper_specs)] = self.configs.tensors();
        let plan = BundlePlan {
            configs: self.configs.clone(),
            normalized: self.manifest.normalized,
            vocabulary: self.vocabulary()?,
            endings: self.manifest.tokenizer.endings.clone(),
            decoder_scope: self.decoder_scope().into(),
            prompt: self.manifest.prompt.clone(),
            clip: replace("clip", "", clip_specs, &clip_stored)?,
            mapper: replace("mapper", "", mapper_specs, &mapper_stored)?,
            gpt2: replace("gpt2", self.decoder_scope(), gpt2_specs, &gpt2_stored)?,
            clip_files: self.small_files("clip")?,
            gpt2_files: self.small_files("gpt2")?,
        };
        build(out, overwrite, &plan)
    }

    /// This bundle, to be written by [`with_weights`](Self::with_weights) as one whose mapper takes embeddings of unit length, or not.
    #[must_use]
    pub fn with_normalized(mut self, normalized: bool) -> Self {
        self.manifest.normalized = normalized;
        self
    }

    /// This bundle, to be written by [`with_weights`](Self::with_weights) as one whose captions go on from a prompt, or from none.
    #[must_use]
    pub fn with_prompt(mut self, prompt: Option<String>) -> Self {
        self.manifest.prompt = prompt;
        self
    }

    /// Files of a part's folder other than its weights and vocabulary.
    fn small_files(&self, part: &str) -> Result<Vec<PathBuf>, BundleError> {
        let folder = self.folder.join(part);
        let mut entries = files::paths_in(&folder).map_err(BundleError::io(folder))?;
        let vocabulary = if part == "gpt2" { Some(self.vocabulary()?) } else { None };
        let written: Vec<&str> = vocabulary.iter().flat_map(Vocabulary::files).map(|(name, _)| name).chain([WEIGHTS]).collect();
        entries
            .retain(|path| path.is_file() && path.file_name().is_some_and(|name| written.iter().all(|written| name != *written)));
        Ok(entries)
    }
}

fn replaced_tensors<'a>(
    path: &Path,
    stored: &'a crate::models::weights::WeightSource,
    specs: Vec<TensorSpec>,
    weights: impl Fn(&str) -> Option<&'a [f32]>,
) -> Result<Vec<PartTensor<'a>>, BundleError> {
    let mut tensors = vec![];
    for TensorSpec { name, shape, .. } in specs {
        let content = match weights(&name) {
            Some(values) if values.len() == shape.iter().product::<usize>() => Content::Values(values),
            Some(values) => {
                return Err(BundleError::invalid(path, format!("{name} {shape:?} was given {} values", values.len())));
            }
            // An optional tensor that is not there stays away.
            None if !stored.tensors().contains_key(&name) => continue,
            None => Content::Stored { source: stored, name: name.clone() },
        };
        tensors.push(PartTensor { name, shape, content });
    }
    Ok(tensors)
}

pub(super) fn check_place(out: &Path, overwrite: bool) -> Result<(), BundleError> {
    if out.file_name().is_none() {
        return Err(BundleError::invalid(out, "this cannot be the name of a new folder"));
    }
    let is_empty = || fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    let is_bundle = out.join(MANIFEST).is_file();
    match out.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(_) if is_empty() || (is_bundle && overwrite) => Ok(()),
        Ok(_) => Err(BundleError::Exists { path: out.into(), is_bundle }),
    }
}

/// The folder a bundle is built in; removed unless it was published.
pub(super) struct Staging(PathBuf);

impl Staging {
    pub(super) fn beside(out: &Path) -> Result<Self, BundleError> {
        let folder = files::temporary_beside(out);
        fs::create_dir_all(&folder).map_err(BundleError::io(&folder))?;
        Ok(Self(folder))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Gives the folder its name. A bundle that had it steps aside first and comes back if that fails.
    pub(super) fn publish(self, out: &Path) -> Result<(), BundleError> {
        let old = out.exists().then(|| files::temporary_beside(out));
        if let Some(old) = &old {
            fs::rename(out, old).map_err(BundleError::io(out))?;
        }
        if let Err(error) = fs::rename(&self.0, out) {
            if let Some(old) = &old {
                fs::rename(old, out).map_err(BundleError::io(old))?;
            }
            return Err(BundleError::Io { path: out.into(), source: error });
        }
        match old {
            Some(old) => fs::remove_dir_all(&old).map_err(BundleError::io(old)),
            None => Ok(()),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After publishing there is nothing under this name.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write_part(folder: &Path, name: &str, plan: &PartPlan) -> Result<PartRecord, BundleError> {
    let file = format!("{name}/{WEIGHTS}");
    let path = folder.join(&file);
    fs::create_dir_all(folder.join(name)).map_err(BundleError::io(folder.join(name)))?;
    match plan {
        PartPlan::New { part, source } => {
            let facts: PartFacts = part.write(&path)?;
            let crc32c = Some(files::crc32c_file(&path).map_err(BundleError::io(&path))?);
            Ok(PartRecord { file, facts, crc32c, source: source.clone() })
        }
        PartPlan::Copied { path: from, record } => {
            files::copy(from, &path).map_err(BundleError::io(from))?;
            let crc32c = files::crc32c_file(&path).map_err(BundleError::io(&path))?;
            if record.crc32c.is_some_and(|recorded| recorded != crc32c) {
                return Err(BundleError::damaged(from));
            }
            Ok(PartRecord { file, crc32c: Some(crc32c), ..record.clone() })
        }
    }
}

/// Configurations, vocabulary and kept files.
fn write_files(folder: &Path, plan: &BundlePlan) -> Result<(), BundleError> {
    let Configs { clip, preprocessor, mapper, decoder } = &plan.configs;
    let mut names = json!({"model_type": decoder.model_type(), "architectures": [decoder.class()]});
    if matches!(plan.vocabulary, Vocabulary::WordPiece { .. }) {
        names["tokenizer_class"] = "BertTokenizer".into();
    }
    let written = [
        ("clip/config.json", clip.to_json()),
        ("clip/preprocessor_config.json", with_keys(preprocessor, json!({"image_processor_type": clip.image_processor_type()}))),
        ("mapper/config.json", with_keys(mapper, json!({}))),
        ("gpt2/config.json", with_keys(decoder, names)),
    ];
    for (name, value) in written {
        let path = folder.join(name);
        files::write_json(&path, &value).map_err(BundleError::io(path))?;
    }
    for (part, kept) in [("clip", &plan.clip_files), ("gpt2", &plan.gpt2_files)] {
        for source in kept {
            let target = folder.join(part).join(source.file_name().unwrap_or_default());
            let bytes = fs::read(source).map_err(BundleError::io(source))?;
            files::write_atomic(&target, &bytes).map_err(BundleError::io(target))?;
        }
    }
    for (name, bytes) in plan.vocabulary.files() {
        let path = folder.join("gpt2").join(name);
        files::write_atomic(&path, bytes).map_err(BundleError::io(path))?;
    }
    Ok(())
}

/// A configuration as JSON, with more keys.
fn with_keys(config: &impl Serialize, keys: Value) -> Value {
    let mut value = json!(config);
    if let (Some(object), Value::Object(keys)) = (value.as_object_mut(), keys) {
        object.extend(keys);
    }
    value
}

fn tokenizer_facts(vocabulary: &Vocabulary, endings: &Endings) -> Result<TokenizerFacts, BundleError> {
    let tokenizer = Tokenizer::new(vocabulary, endings, Path::new(""))?;
    let [pad_token_id, cls_token_id, mask_token_id] = tokenizer.bert_ids();
    Ok(TokenizerFacts {
        kind: tokenizer.kind().into(),
        entries: tokenizer.vocab_size(),
        lower_case: vocabulary.lower_case(),
        unk_token_id: tokenizer.unk_id(),
        sep_token_id: tokenizer.end_id(),
        pad_token_id,
        cls_token_id,
        mask_token_id,
        endings: endings.clone(),
    })
}
