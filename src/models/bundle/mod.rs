//! A model bundle: a folder with everything a caption needs, self-contained, and what `clipcap.json` says of it.
//!
//! ```text
//! clipcap.json                                        this program's own record: see [`Manifest`]
//! image_encoder.onnx  mapper.onnx  decoder.onnx       graphs that point into the weight files
//! clip/{config.json, preprocessor_config.json, model.safetensors}
//! mapper/{config.json, model.safetensors}
//! gpt2/{config.json, vocab.txt, model.safetensors}    the decoder, of whatever family; BPE has tokenizer.json or vocab.json and merges.txt
//! int8.safetensors  image_encoder.int8.onnx  decoder.int8.onnx     after `model quantize`
//! ```
//!
//! Weights are float32, whatever they were published in: the graphs compute in float32 and point straight into the files. `clip/` and
//! `gpt2/` load as they are with transformers' `from_pretrained`.

use std::path::{Path, PathBuf};

use super::config::{ClipConfig, ConfigError, DecoderConfig, MapperConfig, MapperKind, PreprocessorConfig, read_json};
use super::decoders::{Sizes, architecture, decoder_tensors};
use super::graphs::BuildError;
use super::import::ImportError;
use super::part::facts_of;
use super::tensors::{TensorSpec, clip_tensors, mapper_tensors};
use super::weights::{DType, SafetensorsFile, WeightsError};
use crate::files::{self, ContentHash};
use crate::table::{self, TableError};
use crate::text::{TextError, Tokenizer, Vocabulary};

mod build;
mod export;
mod manifest;
mod quantize;
mod static_weights;

pub use build::{BundlePlan, PartPlan, build};
pub use manifest::{
    CalibratedPart, CalibrationRecord, CalibrationReport, DEFAULT_SCOPE, Int8Record, Manifest, PartRecord, Provenance,
    TokenizerFacts, embedding_fingerprint,
};
pub use quantize::Calibrated;

/// The name of a bundle's record.
pub const MANIFEST: &str = "clipcap.json";
/// What it says under `clipcap.format`.
pub const FORMAT: &str = "bundle/1";
/// The weight files of a bundle are called this, each in the folder of its part.
const WEIGHTS: &str = "model.safetensors";

/// What can be wrong with a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file of the bundle cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The folder has no manifest.
    #[error("{}: not a model bundle ({MANIFEST} is missing); `clipcap model import` or `clipcap model init` makes one", path.display())]
    NotABundle {
        /// The folder.
        path: PathBuf,
    },
    /// The parts do not fit each other or the manifest, or a file was changed.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A bundle is to be made where something is.
    #[error("{} exists{}", path.display(), if *is_bundle { "; --overwrite replaces it" } else { " and is not a model bundle: it is left alone" })]
    Exists {
        /// The place.
        path: PathBuf,
        /// A bundle is there, which `--overwrite` may replace.
        is_bundle: bool,
    },
    /// A newer clipcap wrote the manifest.
    #[error(transparent)]
    Version(#[from] TableError),
    /// A configuration in the bundle cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Weights in the bundle cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// What the bundle is to be made of cannot be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The vocabulary cannot be read.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A graph cannot be built from the configurations.
    #[error(transparent)]
    Graphs(#[from] BuildError),
}

impl BundleError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    fn invalid(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Invalid { path: path.into(), problem: problem.into() }
    }

    fn damaged(path: impl Into<PathBuf>) -> Self {
        let problem = format!(
            "its bytes are not those that were written (a bad disk, or a change by hand): copy the bundle again, or make it again \
             (the checksum is in {MANIFEST})"
        );
        Self::invalid(path, problem)
    }
}

/// The configurations of a bundle's parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Configs {
    pub clip: ClipConfig,
    pub preprocessor: PreprocessorConfig,
    pub mapper: MapperConfig,
    pub decoder: DecoderConfig,
}

impl Configs {
    /// Checks that the parts fit each other. `path` names the bundle in errors.
    pub fn validate(&self, path: &Path) -> Result<(), BundleError> {
        let Self { clip, preprocessor, mapper, decoder } = self;
        let sizes = architecture(decoder).sizes();
        let fits = |holds: bool, problem: String| if holds { Ok(()) } else { Err(BundleError::invalid(path, problem)) };
        fits(
            mapper.clip_size == clip.projection_dim,
            format!("the mapper takes embeddings of {} and CLIP makes {}", mapper.clip_size, clip.projection_dim),
        )?;
        fits(
            mapper.n_embd == sizes.n_embd,
            format!("the mapper's n_embd is {} and the decoder's {}", mapper.n_embd, sizes.n_embd),
        )?;
        fits(
            mapper.prefix_len < sizes.n_positions,
            format!("a prefix of {} leaves no room in the decoder's {} positions", mapper.prefix_len, sizes.n_positions),
        )?;
        let side = clip.vision_config.image_size();
        fits(preprocessor.side() == side, format!("preprocessing makes squares of {} and CLIP takes {side}", preprocessor.side()))
    }

    /// The tensors of each part: (part, tensors).
    fn tensors(&self) -> [(&'static str, Vec<TensorSpec>); 3] {
        [("clip", clip_tensors(&self.clip)), ("gpt2", decoder_tensors(&self.decoder)), ("mapper", mapper_tensors(&self.mapper))]
    }
}

/// An opened bundle.
#[derive(Debug, Clone)]
pub struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
    configs: Configs,
}

impl Bundle {
    /// Opens a bundle: reads its record and configurations, and checks that they fit each other and the headers of the weight files.
    /// The weights themselves are not read; [`verify`](Self::verify) does that.
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        let manifest_path = folder.join(MANIFEST);
        if !manifest_path.is_file() {
            return Err(BundleError::NotABundle { path: folder.into() });
        }
        // The version first: a newer record may not even parse.
        let value: serde_json::Value = read_json(&manifest_path)?;
        let format = value.get(table::FORMAT_KEY).and_then(|format| format.as_str()).unwrap_or("(nothing)");
        table::check_format(&manifest_path, format, FORMAT)?;
        let manifest: Manifest =
            serde_json::from_value(value).map_err(|source| ConfigError::Json { path: manifest_path.clone(), source })?;
        let configs = Configs {
            clip: ClipConfig::read(&folder.join("clip/config.json"))?,
            preprocessor: PreprocessorConfig::read(&folder.join("clip/preprocessor_config.json"))?,
            mapper: MapperConfig::read(&folder.join("mapper/config.json"))?,
            decoder: DecoderConfig::read(&folder.join("gpt2/config.json"))?,
        };
        configs.validate(folder)?;
        let recorded = (manifest.mapper_kind, manifest.prefix_len);
        if recorded != (configs.mapper.kind, configs.mapper.prefix_len) {
            let problem = format!("it says a {} mapper of {}, unlike mapper/config.json", recorded.0, recorded.1);
            return Err(BundleError::invalid(manifest_path, problem));
        }
        let bundle = Self { folder: folder.into(), manifest, configs };
        for (part, specs) in bundle.configs.tensors() {
            bundle.part(part)?;
            check_weights(&bundle.weights_path(part), part, &specs)?;
        }
        bundle.check_fingerprint()?;
        Ok(bundle)
    }

    /// The bundle's folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// What `clipcap.json` says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The configurations of all parts.
    pub fn configs(&self) -> &Configs {
        &self.configs
    }

    /// CLIP's configuration.
    pub fn clip_config(&self) -> &ClipConfig {
        &self.configs.clip
    }

    /// The decoder's configuration.
    pub fn decoder_config(&self) -> &DecoderConfig {
        &self.configs.decoder
    }

    /// The decoder's sizes.
    pub fn decoder_sizes(&self) -> Sizes {
        architecture(&self.configs.decoder).sizes()
    }

    /// What stands before the decoder's names where the whole model's tensors are named, such as `gpt2.`.
    pub fn decoder_scope(&self) -> &str {
        &self.manifest.decoder_scope
    }

    /// Text behind the prefix, which captions go on from.
    pub fn prompt(&self) -> Option<&str> {
        self.manifest.prompt.as_deref()
    }

    /// The mapper's configuration.
    pub fn mapper_config(&self) -> &MapperConfig {
        &self.configs.mapper
    }

    /// How images are prepared.
    pub fn preprocessor(&self) -> &PreprocessorConfig {
        &self.configs.preprocessor
    }

    /// Which mapper it has.
    pub fn mapper_kind(&self) -> MapperKind {
        self.configs.mapper.kind
    }

    /// Whether text is put into lower case before it is cut into pieces.
    pub fn lower_case(&self) -> bool {
        self.manifest.tokenizer.lower_case
    }

    /// Whether the mapper takes embeddings of unit length (`--normalize-prefix` of its training).
    pub fn normalized(&self) -> bool {
        self.manifest.normalized
    }

    /// The file that says how images are prepared.
    pub fn preprocessor_path(&self) -> PathBuf {
        self.folder.join("clip/preprocessor_config.json")
    }

    /// The decoder's folder, where its vocabulary is.
    pub fn decoder_folder(&self) -> PathBuf {
        self.folder.join("gpt2")
    }

    /// The files that text is cut into pieces with.
    pub fn vocabulary(&self) -> Result<Vocabulary, BundleError> {
        let folder = self.decoder_folder();
        let found = Vocabulary::find::<TextError>(&folder, |_| Ok(self.lower_case()))?;
        found.ok_or_else(|| BundleError::invalid(folder, "the vocabulary is missing"))
    }

    /// The decoder's tokenizer, which knows what ends a caption.
    pub fn tokenizer(&self) -> Result<Tokenizer, BundleError> {
        self.tokenizer_ending(None)
    }

    /// As [`tokenizer`](Self::tokenizer), with another stop token than the bundle's where one is given.
    pub fn tokenizer_ending(&self, stop_token: Option<&str>) -> Result<Tokenizer, BundleError> {
        let mut endings = self.manifest.tokenizer.endings.clone();
        if let Some(stop_token) = stop_token {
            endings.stop_token = Some(stop_token.into());
        }
        Ok(Tokenizer::new(&self.vocabulary()?, &endings, &self.decoder_folder())?)
    }

    /// The weight file of `clip`, `mapper` or `gpt2`.
    pub fn weights_path(&self, part: &str) -> PathBuf {
        self.folder.join(part).join(WEIGHTS)
    }

    /// The image encoder's graph.
    pub fn image_encoder_path(&self) -> PathBuf {
        self.folder.join("image_encoder.onnx")
    }

    /// The mapper's graph.
    pub fn mapper_path(&self) -> PathBuf {
        self.folder.join("mapper.onnx")
    }

    /// The decoder's graph.
    pub fn decoder_path(&self) -> PathBuf {
        self.folder.join("decoder.onnx")
    }

    /// The whole model in one hash: weights, configurations, vocabulary and preprocessing, and nothing of where they came from.
    pub fn fingerprint(&self) -> &str {
        &self.manifest.fingerprint
    }

    /// What an image's embedding depends on: CLIP and preprocessing. Equal for a model and for what was trained from it.
    pub fn embedding_fingerprint(&self) -> &str {
        &self.manifest.embedding_fingerprint
    }

    /// How many numbers the image encoder's weights are.
    pub fn num_image_weights(&self) -> u64 {
        let images = ClipConfig { text_config: None, ..self.configs.clip.clone() };
        clip_tensors(&images).iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum()
    }

    /// What is recorded of `clip`, `mapper` or `gpt2`.
    pub fn part(&self, part: &str) -> Result<&PartRecord, BundleError> {
        let missing = || BundleError::invalid(self.folder.join(MANIFEST), format!("it does not describe the part {part}"));
        self.manifest.parts.get(part).ok_or_else(missing)
    }

    /// Compares the weight files of these parts with their checksums, where they have any: what a bad disk changed is not used. A gigabyte
    /// takes a tenth of a second or two, where it is in memory.
    ///
    /// # Errors
    /// It names the file that differs.
    pub fn check_bytes(&self, parts: &[&str]) -> Result<(), BundleError> {
        for part in parts {
            check_file(&self.weights_path(part), self.part(part)?.crc32c)?;
        }
        Ok(())
    }

    /// The same for the 8-bit weights, where there are any.
    pub fn check_int8(&self) -> Result<(), BundleError> {
        match &self.manifest.int8 {
            Some(int8) => check_file(&self.folder.join(&int8.file), int8.crc32c),
            None => Ok(()),
        }
    }

    /// Reads every weight and compares with the recorded fingerprints. The error names the first file that differs.
    pub fn verify(&self) -> Result<(), BundleError> {
        if let Some(int8) = &self.manifest.int8 {
            let path = self.folder.join(&int8.file);
            if ContentHash::of_file(&path).map_err(BundleError::io(&path))?.to_string() != int8.fingerprint {
                return Err(BundleError::invalid(path, format!("its content no longer matches the fingerprint in {MANIFEST}")));
            }
        }
        self.check_bytes(&["clip", "gpt2", "mapper"])?;
        for (part, record) in &self.manifest.parts {
            let path = self.weights_path(part);
            if facts_of(&path)? != record.facts {
                return Err(BundleError::invalid(path, format!("its content no longer matches the fingerprint in {MANIFEST}")));
            }
        }
        self.check_fingerprint()
    }

    /// Compares configurations and vocabulary, and what is recorded of the weights, with the recorded fingerprint.
    fn check_fingerprint(&self) -> Result<(), BundleError> {
        let facts = |part: &str| self.part(part).map(|record| &record.facts);
        let vocabulary = self.vocabulary()?;
        let fingerprints = manifest::Fingerprints {
            configs: &self.configs,
            clip: facts("clip")?,
            mapper: facts("mapper")?,
            gpt2: facts("gpt2")?,
            vocabulary: &vocabulary,
            endings: &self.manifest.tokenizer.endings,
            prompt: self.prompt(),
            normalized: self.normalized(),
        };
        if fingerprints.whole() != self.fingerprint() || fingerprints.embedding() != self.embedding_fingerprint() {
            let problem = "the bundle's configurations or vocabulary are not those it was made with: put them back, or make the bundle again";
            return Err(BundleError::invalid(self.folder.join(MANIFEST), problem));
        }
        Ok(())
    }
}

fn check_file(path: &Path, crc32c: Option<u32>) -> Result<(), BundleError> {
    match crc32c {
        Some(recorded) if files::crc32c_file(path).map_err(BundleError::io(path))? != recorded => Err(BundleError::damaged(path)),
        _ => Ok(()),
    }
}

/// Compares the header of a part's weight file with the tensors the part has.
fn check_weights(path: &Path, part: &str, specs: &[TensorSpec]) -> Result<(), BundleError> {
    let file = SafetensorsFile::open(path)?;
    let (mut missing, mut misshapen) = (vec![], vec![]);
    for spec in specs {
        match file.tensors().get(&spec.name) {
            None if spec.optional => {}
            None => missing.push(spec.name.clone()),
            Some(entry) if entry.shape == spec.shape && entry.dtype == DType::F32 => {}
            Some(entry) => misshapen.push(format!(
                "{} is {} {:?} and should be {} {:?}",
                spec.name,
                entry.dtype,
                entry.shape,
                DType::F32,
                spec.shape
            )),
        }
    }
    let known: std::collections::BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let unexpected: Vec<String> = file.tensors().keys().filter(|name| !known.contains(name.as_str())).cloned().collect();
    if missing.is_empty() && misshapen.is_empty() && unexpected.is_empty() {
        return Ok(());
    }
    Err(ImportError::Tensors { path: path.into(), what: format!("the part {part}"), missing, unexpected, misshapen }.into())
}

#[cfg(test)]
mod tests;
