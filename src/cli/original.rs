//! Flags of the original's scripts that a bundle answers by itself: what they say is compared with it.

use crate::models::Bundle;
use crate::models::config::MapperKind;

use super::BadUsage;

/// What the original's predict.py and train.py are told of the model.
#[derive(clap::Args)]
pub struct ModelFlags {
    #[arg(long = "mapping_type", hide = true)]
    mapping_type: Option<String>,
    #[arg(long = "prefix_len", aliases = ["prefix_length", "prefix-length"], hide = true)]
    prefix_len: Option<usize>,
    #[arg(long = "constant_len", hide = true)]
    constant_len: Option<usize>,
    #[arg(long = "clip_size", hide = true)]
    clip_size: Option<usize>,
    #[arg(long = "prefix_length_clip", aliases = ["prefix-length-clip", "clip-length", "clip_length"], hide = true)]
    prefix_length_clip: Option<usize>,
    #[arg(long = "num_layers", alias = "num-layers", hide = true)]
    num_layers: Option<usize>,
    #[arg(long = "only_prefix", alias = "only-prefix", hide = true)]
    pub only_prefix: bool,
    #[arg(long = "is_rn", alias = "is-rn", hide = true)]
    pub is_rn: bool,
}

impl ModelFlags {
    /// What was said of the model must be true of the bundle. Flags that mean nothing for its kind of mapper are let pass: the original's
    /// scripts have defaults for them.
    ///
    /// # Errors
    /// A flag and the bundle say different things.
    pub fn check(&self, bundle: &Bundle) -> Result<(), BadUsage> {
        let mapper = bundle.mapper_config();
        let of_transformer = |given: Option<usize>| given.filter(|_| mapper.kind == MapperKind::Transformer);
        let clip_length = mapper.transformer.map_or(0, |transformer| transformer.clip_length);
        let num_layers = mapper.transformer.map_or(0, |transformer| transformer.num_layers);
        let sizes = [
            ("prefix_len", self.prefix_len, mapper.prefix_len),
            ("constant_len", self.constant_len.filter(|_| mapper.kind != MapperKind::Mlp), mapper.constant_len),
            ("clip_size", self.clip_size, mapper.clip_size),
            ("prefix_length_clip", of_transformer(self.prefix_length_clip), clip_length),
            ("num_layers", of_transformer(self.num_layers), num_layers),
        ];
        let kind = self.mapping_type.as_ref().map(|given| given.replace("transformer_encoder", "transformer"));
        let kind = kind.map(|given| ("mapping_type", given, mapper.kind.to_string()));
        let sizes = sizes.iter().filter_map(|(flag, given, is)| given.map(|given| (*flag, given.to_string(), is.to_string())));
        match kind.into_iter().chain(sizes).find(|(_, given, is)| given != is) {
            None => Ok(()),
            Some((flag, given, is)) => Err(BadUsage(format!(
                "--{flag} {given}: the bundle {} has {is}; `clipcap model init` makes one as you want it",
                bundle.path().display()
            ))),
        }
    }
}
