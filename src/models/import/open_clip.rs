//! open_clip's own folders: `open_clip_config.json` beside the weights.
//!
//! Every key is either understood, or known to change nothing, or refused by its name: a layout that is computed in another way than it was
//! trained gives other embeddings without any other sign.

use std::path::Path;

use serde_json::{Map, Value};

use super::openai::{Shapes, text_of};
use super::{ImportError, hub};
use crate::models::config::{
    Activation, ClipConfig, ClipTextConfig, ClipVisionConfig, PreprocessorConfig, ResNetConfig, Resize, VisionConfig, read_json,
};

/// The configuration's name.
pub const CONFIG: &str = "open_clip_config.json";

/// What the weights are called, the better layout first.
pub const WEIGHTS: [&str; 2] = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"];

/// What the file says of towers and pictures, and what the reader should know.
pub struct OpenClip {
    pub config: ClipConfig,
    pub preprocessor: PreprocessorConfig,
    pub notes: Vec<String>,
}

/// Reads `open_clip_config.json` of a folder; `shapes` are those of the weights.
pub fn read(folder: &Path, shapes: Option<&Shapes<'_>>) -> Result<OpenClip, ImportError> {
    let path = folder.join(CONFIG);
    let file: Value = read_json(&path)?;
    let section = |name: &str| file.get(name).and_then(Value::as_object).cloned();
    let Some(model) = section("model_cfg") else {
        return Err(ImportError::unusable(path, "model_cfg is missing: this is not open_clip's configuration"));
    };
    let mut notes = vec![];
    let mut model = Keys::new(&path, "model_cfg", model);
    let quick_gelu = quick_gelu(&file, &mut model, folder, &mut notes)?;
    let projection_dim = model.size("embed_dim", None)?;
    let vision = model.section("vision_cfg")?.unwrap_or_default();
    let text = model.section("text_cfg")?.unwrap_or_default();
    let custom_text = model.flag("custom_text", false)?;
    let multimodal = model.section("multimodal_cfg")?.is_some();
    // Of captions' logits and of files alone.
    model.ignore(&["init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "output_dict", "cast_dtype", "logit_bias"]);
    model.finish()?;

    let vision = vision_of(Keys::new(&path, "vision_cfg", vision), projection_dim, quick_gelu)?;
    let mut config = ClipConfig::vision_only(vision);
    config.projection_dim = projection_dim;
    let has_text = shapes.is_none_or(|shapes| shapes.holds_text());
    let reason = match (custom_text || multimodal, has_text) {
        (true, _) => Some("a text tower of another kind (custom_text)".to_owned()),
        (false, false) => Some("the weights hold no text tower".to_owned()),
        (false, true) => match text_config(Keys::new(&path, "text_cfg", text), projection_dim, quick_gelu) {
            Ok(text) => {
                config.text_config = Some(text.into());
                None
            }
            Err(error) => Some(error.to_string()),
        },
    };
    if let Some(reason) = reason {
        notes.push(format!("{}: {reason}; the image tower is kept, the text tower left out", folder.display()));
    }
    config.validate(&path)?;
    let preprocessor = preprocessor(&path, section("preprocess_cfg").unwrap_or_default(), config.vision_config.image_size())?;
    Ok(OpenClip { config, preprocessor, notes })
}

/// What the file says; where it is silent, what the model is called (`-quickgelu`, or OpenAI's weights).
fn quick_gelu(file: &Value, model: &mut Keys<'_>, folder: &Path, notes: &mut Vec<String>) -> Result<bool, ImportError> {
    if model.has("quick_gelu") {
        return model.flag("quick_gelu", false);
    }
    let tag = ["pretrained", "pretrained_tag", "tag"].iter().find_map(|key| file.get(*key).and_then(Value::as_str));
    let called = [Some(hub::known_as(folder)), file.get("model_name").and_then(Value::as_str).map(String::from)];
    let called = called.into_iter().flatten().find(|name| name.to_lowercase().contains("quickgelu"));
    match (called, tag) {
        (Some(name), _) => {
            notes.push(format!("{}: {CONFIG} does not say quick_gelu, and the name {name} does", folder.display()));
            Ok(true)
        }
        (None, Some("openai")) => Ok(true),
        _ => Ok(false),
    }
}

fn vision_of(mut keys: Keys<'_>, projection_dim: usize, quick_gelu: bool) -> Result<VisionConfig, ImportError> {
    if let Some(name) = keys.take("timm_model_name").filter(|name| !name.is_null()) {
        return Err(keys.unusable(format!(
            "its image tower is timm's {name}; open_clip's own vision transformers and ResNets are supported"
        )));
    }
    let side = match keys.take("image_size") {
        Some(Value::Array(sides)) => match sides.as_slice() {
            [a, b] if a == b => a.as_u64().unwrap_or(0) as usize,
            _ => return Err(keys.unusable("image_size is not square".to_owned())),
        },
        Some(side) => side.as_u64().unwrap_or(0) as usize,
        None => 224,
    };
    let layers = keys.take("layers");
    let (width, head_width) = (keys.size("width", Some(768))?, keys.size("head_width", Some(64))?);
    // Nothing of these changes what an image's embedding is.
    keys.ignore(&["patch_dropout", "output_tokens", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias"]);
    keys.ignore(&["timm_drop", "timm_drop_path", "attn_pooler_queries", "attn_pooler_heads"]);
    keys.neutral("pos_embed_type", &[Value::from("learnable"), Value::from("sin_cos_2d")])?;
    keys.neutral("pool_type", &[Value::from("tok")])?;
    for name in ["no_ln_pre", "final_ln_after_pool", "attentional_pool", "global_average_pool", "input_patchnorm"] {
        keys.neutral(name, &[Value::from(false)])?;
    }
    keys.neutral("ls_init_value", &[])?;
    // A ResNet's heads are in its pool, which is 32 times as wide (RN50x4: 80, with 40 heads of 64).
    let is_resnet = layers.as_ref().is_some_and(Value::is_array);
    let attended = if is_resnet { width.saturating_mul(32) } else { width };
    if attended % head_width != 0 {
        return Err(keys.unusable(format!("width {width} is not a multiple of head_width {head_width}")));
    }
    if let Some(Value::Array(stages)) = &layers {
        let stages: Vec<usize> = stages.iter().map(|stage| stage.as_u64().unwrap_or(0) as usize).collect();
        let Ok(stages) = <[usize; 4]>::try_from(stages) else {
            return Err(keys.unusable("layers must be a number, or four of them for a ResNet".to_owned()));
        };
        // These say nothing of a ResNet.
        keys.ignore(&["mlp_ratio", "patch_size", "act_kwargs", "norm_kwargs"]);
        keys.finish()?;
        let heads = attended / head_width;
        return Ok(ResNetConfig { stages, width, heads, image_size: side, projection_dim }.into());
    }
    let ratio = keys.number("mlp_ratio", 4.0)?;
    let config = ClipVisionConfig {
        hidden_size: width,
        intermediate_size: (width as f64 * ratio) as usize,
        num_hidden_layers: layers.map_or(Some(12), |layers| layers.as_u64()).unwrap_or(0) as usize,
        num_attention_heads: width / head_width,
        image_size: side,
        patch_size: keys.size("patch_size", Some(16))?,
        projection_dim,
        hidden_act: keys.activation(quick_gelu)?,
        layer_norm_eps: keys.epsilon()?,
        ..ClipVisionConfig::default()
    };
    keys.finish()?;
    Ok(config.into())
}

fn text_config(mut keys: Keys<'_>, projection_dim: usize, quick_gelu: bool) -> Result<ClipTextConfig, ImportError> {
    if let Some(name) = keys.take("hf_model_name").filter(|name| !name.is_null()) {
        return Err(keys.unusable(format!("its text tower is {name}")));
    }
    let (vocab_size, width) = (keys.size("vocab_size", Some(49408))?, keys.size("width", Some(512))?);
    let ratio = keys.number("mlp_ratio", 4.0)?;
    keys.ignore(&["pad_id", "eos_id", "output_tokens", "hf_model_pretrained", "hf_pooler_type", "hf_proj_type"]);
    keys.neutral("hf_tokenizer_name", &[Value::from("")])?;
    keys.neutral("tokenizer_kwargs", &[Value::Object(Map::new())])?;
    keys.neutral("pool_type", &[Value::from("argmax")])?;
    keys.neutral("proj_type", &[Value::from("linear")])?;
    for name in ["embed_cls", "no_causal_mask", "final_ln_after_pool", "proj_bias"] {
        keys.neutral(name, &[Value::from(false)])?;
    }
    keys.neutral("ls_init_value", &[])?;
    let config = ClipTextConfig {
        intermediate_size: (width as f64 * ratio) as usize,
        num_hidden_layers: keys.size("layers", Some(12))?,
        num_attention_heads: keys.size("heads", Some(8))?,
        max_position_embeddings: keys.size("context_length", Some(77))?,
        hidden_act: keys.activation(quick_gelu)?,
        layer_norm_eps: keys.epsilon()?,
        ..text_of(vocab_size, width, projection_dim)
    };
    keys.finish()?;
    Ok(config)
}

fn preprocessor(path: &Path, section: Map<String, Value>, side: usize) -> Result<PreprocessorConfig, ImportError> {
    let usual = PreprocessorConfig::for_image_size(side);
    let mut keys = Keys::new(path, "preprocess_cfg", section);
    let resample = match keys.text("interpolation", "bicubic")?.as_str() {
        "bicubic" => 3,
        "bilinear" => 2,
        other => return Err(keys.unusable(format!("interpolation is {other}; bicubic and bilinear are supported"))),
    };
    let (size, do_center_crop) = match keys.text("resize_mode", "shortest")?.as_str() {
        "shortest" => (Resize::ShortestEdge(side), true),
        "squash" => (Resize::Exact { height: side, width: side }, false),
        "longest" => (Resize::LongestEdge(side), true),
        other => return Err(keys.unusable(format!("resize_mode is {other}; shortest, longest and squash are supported"))),
    };
    let longest = matches!(size, Resize::LongestEdge(_));
    if let Some(color) = keys.take("fill_color").filter(|color| longest && !color.is_null() && color.as_f64() != Some(0.0)) {
        return Err(keys.unusable(format!("fill_color is {color}; black (0) is supported")));
    }
    keys.neutral("mode", &[Value::from("RGB")])?;
    let said = keys.take("size");
    let sides: Vec<u64> = match &said {
        None | Some(Value::Null) => vec![],
        Some(Value::Array(sides)) => sides.iter().map(|side| side.as_u64().unwrap_or(0)).collect(),
        Some(side) => vec![side.as_u64().unwrap_or(0)],
    };
    // Some files put the channels in front.
    let sides = if sides.len() == 3 && sides[0] == 3 { &sides[1..] } else { &sides[..] };
    if sides.iter().any(|&said| said != side as u64) {
        return Err(keys.unusable(format!("size is {} and the model's image_size {side}", said.unwrap_or_default())));
    }
    let image_mean = keys.channels("mean", usual.image_mean)?;
    let image_std = keys.channels("std", usual.image_std)?;
    keys.finish()?;
    let config = PreprocessorConfig { size, resample, do_center_crop, image_mean, image_std, ..usual };
    config.validate(path)?;
    Ok(config)
}

/// The keys of a section, taken one by one; what is left over in the end was not understood.
struct Keys<'a> {
    path: &'a Path,
    section: &'static str,
    map: Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn new(path: &'a Path, section: &'static str, map: Map<String, Value>) -> Self {
        Self { path, section, map }
    }

    fn unusable(&self, problem: String) -> ImportError {
        ImportError::unusable(self.path, format!("{}: {problem}", self.section))
    }

    fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key)
    }

    fn ignore(&mut self, keys: &[&str]) {
        keys.iter().for_each(|key| drop(self.map.remove(*key)));
    }

    /// A key that may be absent, null or one of these.
    fn neutral(&mut self, key: &str, allowed: &[Value]) -> Result<(), ImportError> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if allowed.contains(&value) => Ok(()),
            Some(value) => {
                Err(self
                    .unusable(format!("{key} is {value}, which is not supported: the image would be computed in another way")))
            }
        }
    }

    fn typed<T>(&mut self, key: &str, usual: Option<T>, read: impl Fn(&Value) -> Option<T>) -> Result<T, ImportError> {
        match self.take(key) {
            None | Some(Value::Null) => usual.ok_or_else(|| self.unusable(format!("{key} is missing"))),
            Some(value) => read(&value).ok_or_else(|| self.unusable(format!("{key} is {value}, which it cannot be"))),
        }
    }

    fn size(&mut self, key: &str, usual: Option<usize>) -> Result<usize, ImportError> {
        self.typed(key, usual, |value| value.as_u64().filter(|size| (1..=1 << 20).contains(size)).map(|size| size as usize))
    }

    fn number(&mut self, key: &str, usual: f64) -> Result<f64, ImportError> {
        self.typed(key, Some(usual), |value| value.as_f64().filter(|number| number.is_finite() && (0.0..1e4).contains(number)))
    }

    fn flag(&mut self, key: &str, usual: bool) -> Result<bool, ImportError> {
        self.typed(key, Some(usual), Value::as_bool)
    }

    fn text(&mut self, key: &str, usual: &str) -> Result<String, ImportError> {
        self.typed(key, Some(usual.to_owned()), |value| value.as_str().map(String::from))
    }

    fn section(&mut self, key: &str) -> Result<Option<Map<String, Value>>, ImportError> {
        self.typed(key, Some(None), |value| value.as_object().cloned().map(Some))
    }

    fn channels(&mut self, key: &str, usual: [f64; 3]) -> Result<[f64; 3], ImportError> {
        self.typed(key, Some(usual), |value| match value {
            Value::Array(values) => values.iter().map(Value::as_f64).collect::<Option<Vec<_>>>()?.try_into().ok(),
            value => Some([value.as_f64()?; 3]),
        })
    }

    /// GELU, QuickGELU, or GELU by tanh where `act_kwargs` says so.
    fn activation(&mut self, quick_gelu: bool) -> Result<Activation, ImportError> {
        let mut options = self.section("act_kwargs")?.unwrap_or_default();
        let approximate = options.remove("approximate");
        match (quick_gelu, approximate.as_ref().and_then(Value::as_str), options.is_empty()) {
            (true, None, true) => Ok(Activation::QuickGelu),
            (false, None | Some("none"), true) => Ok(Activation::Gelu),
            (false, Some("tanh"), true) => Ok(Activation::GeluNew),
            _ => Err(self.unusable("act_kwargs says what is not supported".to_owned())),
        }
    }

    fn epsilon(&mut self) -> Result<f64, ImportError> {
        let mut options = self.section("norm_kwargs")?.unwrap_or_default();
        let epsilon = match options.remove("eps") {
            None | Some(Value::Null) => Some(1e-5),
            Some(value) => value.as_f64().filter(|eps| *eps > 0.0 && *eps < 1.0),
        };
        match (epsilon, options.is_empty()) {
            (Some(epsilon), true) => Ok(epsilon),
            _ => Err(self.unusable("norm_kwargs says what is not supported".to_owned())),
        }
    }

    /// Refuses what was not understood.
    fn finish(self) -> Result<(), ImportError> {
        let off = |value: &Value| value.is_null() || value.as_bool() == Some(false);
        let unknown: Vec<String> =
            self.map.iter().filter(|(_, value)| !off(value)).map(|(key, value)| format!("{key} ({value})")).collect();
        match unknown.is_empty() {
            true => Ok(()),
            false => Err(self.unusable(format!(
                "{} not known here, so it is not known whether the embeddings would be right",
                unknown.join(", ")
            ))),
        }
    }
}
