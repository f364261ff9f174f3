//! CLIP and its relatives as they are published: Hugging Face's folders, OpenAI's files, open_clip's folders.

use std::path::{Path, PathBuf};

use super::openai::Shapes;
use super::{ImportError, catalog, hub, match_part, open_clip, openai, presets};
use crate::files::paths_in;
use crate::models::config::{ClipConfig, PreprocessorConfig, TextConfig, VisionConfig, read_json};
use crate::models::part::Part;
use crate::models::tensors::clip_tensors;
use crate::models::weights::WeightSource;

/// A CLIP to take over: its configuration, and its weights where there are any.
pub struct ClipSource {
    path: PathBuf,
    /// In Hugging Face's terms, whatever the source is written in.
    pub config: ClipConfig,
    /// What pictures go through before the image tower.
    pub preprocessor: PreprocessorConfig,
    /// None: a preset, or a folder with a configuration alone; weights are then drawn from a seed.
    pub weights: Option<WeightSource>,
    /// Files of the source to keep as they are: tokenizer, and configurations that need no change.
    pub kept_files: Vec<PathBuf>,
    /// What the reader should know.
    pub notes: Vec<String>,
    /// True for a preset's name, whose weights are always new.
    pub is_preset: bool,
    layout: Layout,
}

/// How tensors are named.
enum Layout {
    HuggingFace,
    /// OpenAI's names behind a prefix.
    OpenAi {
        prefix: String,
    },
}

/// Tokenizer files that a CLIP folder has beside its weights.
const TOKENIZER_FILES: [&str; 6] =
    ["vocab.json", "merges.txt", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

impl ClipSource {
    /// A preset's name; a weight file (OpenAI's, or one inside a folder that this reads); a folder of Hugging Face (its cache's too) or
    /// open_clip, with or without weights.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        if let Some(config) = presets::clip_preset(path) {
            let preprocessor = config.vision_config.tower().preprocessor();
            return Ok(Self { is_preset: true, ..Self::new(path, config, preprocessor, None) });
        }
        let path = &hub::resolve(path)?;
        if path.is_dir() {
            return Self::open_folder(path);
        }
        let weights = WeightSource::open(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        if openai_prefix(&weights).is_some() {
            if openai::is_openais_own(&weights) {
                let config = openai::config(path, &weights)?;
                let preprocessor = config.vision_config.tower().preprocessor();
                let layout = Layout::OpenAi { prefix: String::new() };
                return Ok(Self { layout, ..Self::new(path, config, preprocessor, Some(weights)) });
            }
            if folder.join(open_clip::CONFIG).is_file() {
                return Self::open_clip(folder, Some(weights));
            }
            return Err(ImportError::unusable(
                path,
                format!(
                    "tensors under OpenAI's names in a file that is not OpenAI's own archive: its activation and the width of its heads \
                     are not known. Put its {} beside it, or give OpenAI's own file",
                    open_clip::CONFIG
                ),
            ));
        }
        match folder.join("config.json").is_file() {
            true => Self::hugging_face(folder, Some(weights)),
            false => Err(ImportError::unusable(
                path,
                "neither an OpenAI checkpoint (visual.conv1.weight is missing) nor a file with a config.json beside it",
            )),
        }
    }

    fn new(path: &Path, config: ClipConfig, preprocessor: PreprocessorConfig, weights: Option<WeightSource>) -> Self {
        Self {
            path: path.into(),
            config,
            preprocessor,
            weights,
            kept_files: vec![],
            notes: vec![],
            is_preset: false,
            layout: Layout::HuggingFace,
        }
    }

    fn open_folder(folder: &Path) -> Result<Self, ImportError> {
        let open = |found: Option<PathBuf>| found.map(|path| WeightSource::open(&path)).transpose();
        if folder.join(open_clip::CONFIG).is_file() && !is_hugging_faces(folder) {
            let weights = open(WeightSource::find_named(folder, &open_clip::WEIGHTS)?)?;
            return Self::open_clip(folder, weights);
        }
        if !folder.join("config.json").is_file() {
            return Err(ImportError::unusable(
                folder,
                format!("neither config.json nor {} is in this folder: it holds {}", open_clip::CONFIG, listing(folder)),
            ));
        }
        Self::hugging_face(folder, open(WeightSource::find_in(folder)?)?)
    }

    fn hugging_face(folder: &Path, weights: Option<WeightSource>) -> Result<Self, ImportError> {
        let config_path = folder.join("config.json");
        let mut config = ClipConfig::read(&config_path)?;
        let mut kept_files = tokenizer_files(folder);
        let mut notes = vec![];
        let side = config.vision_config.image_size();
        let usual = match &config.text_config {
            Some(TextConfig::Bert(_)) => PreprocessorConfig {
                size: crate::models::config::Resize::Exact { height: side, width: side },
                do_center_crop: false,
                ..PreprocessorConfig::for_image_size(side)
            },
            _ => config.vision_config.tower().preprocessor(),
        };
        let preprocessor_path = folder.join("preprocessor_config.json");
        let is_clip =
            matches!((&config.vision_config, &config.text_config), (VisionConfig::Vit(_), None | Some(TextConfig::Clip(_))));
        let preprocessor = if preprocessor_path.is_file() {
            // CLIP's own defaults are for 224 pixels, whatever the model.
            let usual = if is_clip { PreprocessorConfig::for_image_size(224) } else { usual };
            let preprocessor = PreprocessorConfig::read_over(&preprocessor_path, &usual)?;
            if preprocessor.side() != side {
                let problem = format!("it makes pictures of {} pixels and the model's image_size is {side}", preprocessor.side());
                return Err(ImportError::unusable(preprocessor_path, problem));
            }
            // What a file of another family leaves unsaid is written out.
            if is_clip {
                kept_files.push(preprocessor_path);
            }
            preprocessor
        } else {
            notes.push(format!("{}: no preprocessor_config.json; the family's own preprocessing is assumed", folder.display()));
            usual
        };
        let text_stored = weights.as_ref().map(|weights| weights.tensors().keys().any(|name| name.starts_with("text_model.")));
        let is_siglip = matches!(config.vision_config, VisionConfig::Siglip(_));
        match (config.text_config.is_some(), text_stored) {
            (true, Some(false)) => {
                config.text_config = None;
                notes.push(format!("{}: the weights hold no text tower; the image tower is kept", folder.display()));
            }
            (false, Some(true)) if is_siglip => {
                notes.push(format!("{}: SigLIP's text tower is left out; the image tower is kept", folder.display()));
            }
            (false, Some(true)) if ClipConfig::is_vision_alone(&config_path)? => {
                notes.push(format!(
                    "{}: the configuration is an image tower's; the stored text tower is left out",
                    folder.display()
                ));
            }
            (false, Some(true)) => {
                let problem = "the weights hold a text tower (text_model.*), and text_config, which says what it computes, is missing: \
                               fetch this file again (one of the model_type clip_vision_model takes the image tower alone)";
                return Err(ImportError::unusable(config_path, problem));
            }
            // Nothing of the configuration changes, so the file stays as it is, with whatever else it says.
            _ if !is_siglip => kept_files.push(config_path),
            _ => {}
        }
        Ok(Self { kept_files, notes, ..Self::new(folder, config, preprocessor, weights) })
    }

    fn open_clip(folder: &Path, weights: Option<WeightSource>) -> Result<Self, ImportError> {
        let prefix = weights.as_ref().and_then(openai_prefix).unwrap_or_default();
        let path = weights.as_ref().map_or(folder, WeightSource::path);
        let shapes = weights.as_ref().map(|weights| Shapes::new(path, weights, &prefix));
        let open_clip::OpenClip { config, preprocessor, notes } = open_clip::read(folder, shapes.as_ref())?;
        let kept_files = tokenizer_files(folder);
        let layout = Layout::OpenAi { prefix };
        Ok(Self { kept_files, notes, layout, ..Self::new(folder, config, preprocessor, weights) })
    }

    /// The part to write, with every tensor matched against the configuration. Without weights: new ones.
    pub fn part(&self, seed: u64) -> Result<Part<'_>, ImportError> {
        let specs = clip_tensors(&self.config);
        let Some(weights) = &self.weights else { return Ok(Part::random(specs, seed)) };
        let has_text = self.config.text_config.is_some();
        let catalog = match &self.layout {
            Layout::OpenAi { prefix } => {
                openai::catalog(weights, prefix, matches!(self.config.vision_config, VisionConfig::ResNet(_)), has_text)
            }
            Layout::HuggingFace => catalog(weights, |name| {
                let text = ["text_model.", "text_projection.", "logit_scale", "logit_bias"]
                    .iter()
                    .any(|prefix| name.starts_with(prefix));
                // Older releases stored the row numbers of the position embeddings; SigLIP's bias is of logits alone.
                let buffer = name.ends_with(".embeddings.position_ids") || name == "logit_bias";
                (!buffer && (has_text || !text)).then(|| name.to_owned())
            }),
        };
        match_part("this CLIP", weights.path().into(), &specs, catalog)
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What stands in front of OpenAI's names in a file that has them (`module.`, for instance).
fn openai_prefix(weights: &WeightSource) -> Option<String> {
    let ends = ["visual.conv1.weight", "visual.layer1.0.conv1.weight"];
    weights.tensors().keys().find_map(|name| {
        let prefix = ends.iter().find_map(|end| name.strip_suffix(end))?;
        (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_owned())
    })
}

/// True where a folder is whole in Hugging Face's layout, whatever lies beside.
fn is_hugging_faces(folder: &Path) -> bool {
    let config: Option<serde_json::Value> = read_json(&folder.join("config.json")).ok();
    let named = config.is_some_and(|config| config.get("model_type").is_some() && config.get("vision_config").is_some());
    named && WeightSource::find_in(folder).is_ok_and(|found| found.is_some())
}

fn tokenizer_files(folder: &Path) -> Vec<PathBuf> {
    TOKENIZER_FILES.iter().map(|name| folder.join(name)).filter(|path| path.is_file()).collect()
}

/// The first names in a folder.
fn listing(folder: &Path) -> String {
    let paths = paths_in(folder).unwrap_or_default();
    let names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy()).collect();
    match names.len() {
        0 => "nothing".into(),
        count if count > 8 => format!("{} and {} more", names[..8].join(", "), count - 8),
        _ => names.join(", "),
    }
}
