//! The graphs of a bundle: which weight files they point into, and the variants a provider wants.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::config::{ClipConfig, DecoderConfig, MapperConfig};
use super::decoder::Picked;
use super::decoders::{SharedCache, architecture};
use super::fed::FedWeights;
use super::layers::Style;
use super::weights::{SafetensorsFile, WeightsError};
use super::{clip, decoders, int8, mapper, text_encoder};
use crate::image::Preprocess;
use crate::onnx::{DType, ExternalTensor, Graph, GraphError, Int8Names, Model, ParameterMode, Spelling};

/// Weight files of a bundle, relative to it.
pub const CLIP_WEIGHTS: &str = "clip/model.safetensors";
pub const MAPPER_WEIGHTS: &str = "mapper/model.safetensors";
pub const GPT2_WEIGHTS: &str = "gpt2/model.safetensors";
pub const INT8_WEIGHTS: &str = "int8.safetensors";

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error("{}: this bundle has no 8-bit weights: `clipcap model quantize` makes a bundle that has", folder.display())]
    NotQuantized { folder: std::path::PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: std::path::PathBuf, source: std::io::Error },
}

/// Which network of a bundle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GraphKind<'a> {
    ImageEncoder(&'a ClipConfig),
    TextEncoder(&'a ClipConfig),
    Mapper(&'a MapperConfig),
    /// In ONNX's own operators.
    Decoder(&'a DecoderConfig),
    /// Over a cache updated in place (ONNX Runtime's operators).
    InPlaceDecoder(&'a DecoderConfig),
    /// Over caches of a fixed length on the device: the first run, one token more of all rows in place, and moving rows.
    StaticPrefill {
        config: &'a DecoderConfig,
        shared: SharedCache,
        prefix_len: usize,
        length: usize,
        picked: Picked,
    },
    SharedStep {
        config: &'a DecoderConfig,
        shared: SharedCache,
        rows: usize,
        length: usize,
        picked: Picked,
    },
    MoveRows {
        /// Of a row, in elements.
        width: usize,
    },
    /// Whole rows of logits, of which the best were looked at before.
    PickLogits(&'a DecoderConfig),
    /// As [`ImageEncoder`](Self::ImageEncoder), from the bytes of pictures.
    ByteEncoder(&'a ClipConfig, &'a Preprocess),
}

impl GraphKind<'_> {
    pub fn name(&self) -> &'static str {
        match self {
            Self::ImageEncoder(_) | Self::ByteEncoder(..) => "image_encoder",
            Self::TextEncoder(_) => "text_encoder",
            Self::Mapper(_) => "mapper",
            Self::Decoder(_) | Self::InPlaceDecoder(_) => "decoder",
            Self::StaticPrefill { .. } => "decoder_prefill",
            Self::SharedStep { .. } => "decoder_step",
            Self::MoveRows { .. } => "move_rows",
            Self::PickLogits(_) => "pick_logits",
        }
    }

    fn weights(&self) -> &'static str {
        match self {
            Self::ImageEncoder(_) | Self::ByteEncoder(..) | Self::TextEncoder(_) => CLIP_WEIGHTS,
            Self::Mapper(_) => MAPPER_WEIGHTS,
            _ => GPT2_WEIGHTS,
        }
    }
}

/// Builds one graph over the weights of the bundle at `folder`, to lie in that folder. In 8 bits it has the static scales of `model quantize
/// --calibrate` where there are any for the part, else a scale for each row of the activations.
pub fn build(folder: &Path, kind: GraphKind<'_>, style: Style) -> Result<Model, BuildError> {
    Ok(built(folder, kind, style, &|_| false)?.0)
}

/// The same in float32, with the weights that `is_fed` names as inputs of their names, and room for those.
pub fn build_fed(
    folder: &Path,
    kind: GraphKind<'_>,
    style: Style,
    is_fed: &dyn Fn(&str) -> bool,
) -> Result<(Model, FedWeights), BuildError> {
    built(folder, kind, Style { int8: false, dtype: DType::F32, ..style }, is_fed)
}

fn built(
    folder: &Path,
    kind: GraphKind<'_>,
    style: Style,
    is_fed: &dyn Fn(&str) -> bool,
) -> Result<(Model, FedWeights), BuildError> {
    let mut table = external_tensors(folder, kind.weights())?;
    if style.int8 {
        let path = folder.join(INT8_WEIGHTS);
        if !path.is_file() {
            return Err(BuildError::NotQuantized { folder: folder.into() });
        }
        let float = build(folder, kind, Style { int8: false, ..style })?;
        let spelling = match kind {
            GraphKind::InPlaceDecoder(_) if style.dots => Spelling::Own,
            _ if style.fused => Spelling::Unsigned,
            // Without ONNX Runtime's own operators it is for OpenVINO.
            _ => Spelling::Signed,
        };
        if let Some(model) = int8::in_8_bits(folder, &float, spelling)? {
            return Ok((model, FedWeights::default()));
        }
        let in_8_bits = external_tensors(folder, INT8_WEIGHTS)?;
        if !float.products().iter().any(|product| in_8_bits.contains_key(&Int8Names::of(&product.weight).data)) {
            return Ok((float, FedWeights::default()));
        }
        table.extend(in_8_bits);
    }
    let fed: HashSet<String> = table.keys().filter(|name| is_fed(name)).cloned().collect();
    let is_input = {
        let fed = fed.clone();
        move |name: &str| fed.contains(name)
    };
    table.iter_mut().filter(|(name, _)| fed.contains(*name)).for_each(|(_, tensor)| tensor.dtype = DType::F32);
    let g = Graph::with_parameters(kind.name(), table, move |name| match is_input(name) {
        true => ParameterMode::Input,
        false => ParameterMode::Reference,
    });
    if style.cuda {
        g.spell_for_cuda();
    }
    match kind {
        GraphKind::ImageEncoder(config) => clip::image_encoder(&g, style, config),
        GraphKind::ByteEncoder(config, preprocess) => clip::byte_encoder(&g, style, config, preprocess),
        GraphKind::TextEncoder(config) => text_encoder::text_encoder(&g, style, config),
        GraphKind::Mapper(config) => mapper::mapper(&g, style, config),
        GraphKind::Decoder(config) => decoders::decoder(&g, style, architecture(config)),
        GraphKind::InPlaceDecoder(config) => decoders::in_place_decoder(&g, style, architecture(config)),
        GraphKind::StaticPrefill { config, shared, prefix_len, length, picked } => {
            decoders::static_prefill(&g, style, architecture(config), shared, [prefix_len, length], &picked)
        }
        GraphKind::SharedStep { config, shared, rows, length, picked } => {
            decoders::shared_step(&g, style, architecture(config), shared, [rows, length], &picked)
        }
        GraphKind::MoveRows { width } => decoders::move_rows(&g, style, width),
        GraphKind::PickLogits(config) => decoders::pick_logits(&g, architecture(config)),
    }
    let fed = FedWeights::of(&g, &fed);
    Ok((g.finish()?, fed))
}

/// Writes `image_encoder.onnx`, `mapper.onnx` and `decoder.onnx` into a bundle whose weights are in place.
pub fn write(folder: &Path, clip: &ClipConfig, mapper: &MapperConfig, decoder: &DecoderConfig) -> Result<(), BuildError> {
    for kind in [GraphKind::ImageEncoder(clip), GraphKind::Mapper(mapper), GraphKind::Decoder(decoder)] {
        let path = folder.join(kind.name()).with_extension("onnx");
        build(folder, kind, Style::PORTABLE)?.save(&path).map_err(|source| BuildError::Io { path, source })?;
    }
    Ok(())
}

/// The tensors of a weight file as initializers name them.
pub fn external_tensors(folder: &Path, file: &str) -> Result<HashMap<String, ExternalTensor>, BuildError> {
    let weights = SafetensorsFile::open(folder.join(file))?;
    let tensors = weights.tensors().iter().filter_map(|(name, entry)| {
        let dtype = Some(entry.dtype).filter(|dtype| !matches!(dtype, DType::F64 | DType::I16 | DType::Bool))?;
        let shape = entry.shape.iter().map(|&d| d as i64).collect();
        Some((name.clone(), ExternalTensor { dtype, shape, location: file.into(), offset: entry.offset, length: entry.length }))
    });
    Ok(tensors.collect())
}
