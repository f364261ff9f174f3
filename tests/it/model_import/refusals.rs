//! What cannot become a bundle.

use std::fs;
use std::path::Path;

use clipcap::models::weights::{DType, SafetensorsWriter, WeightSource};

use super::{Rename, Setup, refused, strs};
use crate::common::{clipcap, run};

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let setup = Setup::new();
    let (clip, gpt2) = (setup.golden("clip_hf"), setup.golden("gpt2"));
    let import = |checkpoint: &str| refused(&strs(&setup.import(&clip, &gpt2, checkpoint, &setup.here("out"))));
    let cases: [(&str, &str, Rename, &str); 6] = [
        (
            "clipcap_mlp.pt",
            "missing",
            |name| (!name.contains("h.1.ln_2.bias")).then(|| name.into()),
            "missing: transformer.h.1.ln_2.bias",
        ),
        ("clipcap_mlp.pt", "extra", |name| Some(name.replace("ln_f.bias", "ln_g.bias")), "unexpected: transformer.ln_g.bias"),
        (
            "clipcap_mlp.pt",
            "swapped",
            |name| {
                Some(match name {
                    "gpt2.transformer.h.0.mlp.c_fc.weight" => "gpt2.transformer.h.0.mlp.c_proj.weight".into(),
                    "gpt2.transformer.h.0.mlp.c_proj.weight" => "gpt2.transformer.h.0.mlp.c_fc.weight".into(),
                    name => name.into(),
                })
            },
            "transformer.h.0.mlp.c_fc.weight is [128, 32] and should be [32, 128]",
        ),
        (
            "clipcap_mlp.pt",
            "transformer",
            |name| Some(name.replace("clip_project.model", "clip_project.transformer")),
            "there is no tensor named clip_project.linear.weight",
        ),
        (
            "clipcap_mlp.pt",
            "other",
            |name| Some(name.replace("clip_project.model.0.bias", "clip_project.model.0.other")),
            "missing: clip_project.model.0.bias\n  unexpected: clip_project.model.0.other",
        ),
        (
            "clipcap_bert.pt",
            "unlinear",
            |name| (!name.contains("clip_project.linear.bias")).then(|| name.into()),
            "missing: clip_project.linear.bias",
        ),
    ];
    for (file, word, rename, wanted) in cases {
        let message = import(&setup.renamed(file, &format!("{word}.safetensors"), rename));
        assert!(message.contains(wanted), "{word}: {message}");
    }
    for (checkpoint, wanted) in [
        (setup.golden("gpt2/model.safetensors"), "no clip_project.* tensors"),
        (setup.golden("gpt2/vocab.txt"), "not a weight file"),
        (setup.here("nowhere.pt"), "nowhere.pt"),
    ] {
        let message = import(&checkpoint);
        assert!(message.contains(wanted), "{message}");
    }
    // Without the heads a BERT cannot be rebuilt.
    let bert = setup.golden("clipcap_bert.pt");
    let message = refused(&["import", "--clip", &clip, "--gpt2", &gpt2, "--checkpoint", &bert, "--out", &setup.here("out")]);
    assert!(message.contains("--bert-config"), "{message}");
    // Nothing is left behind, under any name.
    assert!(!fs::read_dir(setup.folder.path()).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().starts_with("out")));
}

#[test]
fn a_head_of_its_own_is_taken_over_and_broken_weights_are_refused() {
    let setup = Setup::new();
    let source = WeightSource::open(&setup.golden.path("gpt2_legacy")).unwrap();
    let names = source.tensors().keys().filter(|name| !name.ends_with(".attn.bias") && !name.ends_with(".masked_bias"));
    let list = names.clone().map(|name| (name.as_str(), DType::F32, source.get(name).unwrap().shape.as_slice()));
    let gpt2 = setup.here("gpt2");
    let mut writer = SafetensorsWriter::create(&Path::new(&gpt2).join("model.safetensors"), list.clone()).unwrap();
    for name in names.clone() {
        let mut values = source.read_f32(name).unwrap();
        values[0] += if name == "lm_head.weight" { 1.0 } else { 0.0 };
        writer.write_f32(name, &values).unwrap();
    }
    writer.finish().unwrap();
    for file in ["config.json", "vocab.txt"] {
        fs::copy(setup.golden(&format!("gpt2/{file}")), Path::new(&gpt2).join(file)).unwrap();
    }
    let init = || refused(&["init", "--clip", "vit-tiny", "--gpt2", &gpt2, "--mapper", "mlp", "--out", &setup.here("out")]);
    let bundle = setup.here("untied");
    run(
        clipcap().args(["model", "init", "--quiet", "--clip", "vit-tiny", "--mapper", "mlp", "--gpt2", &gpt2, "--out", &bundle]),
        0,
    );
    let weights = WeightSource::open(&Path::new(&bundle).join("gpt2")).unwrap();
    let [head, embeddings] = ["lm_head.weight", "transformer.wte.weight"].map(|name| weights.read_f32(name).unwrap());
    assert_eq!((head[0], &head[1..]), (embeddings[0] + 1.0, &embeddings[1..]));
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(Path::new(&bundle).join("gpt2/config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    // Weights that are no numbers.
    let weights = Path::new(&gpt2).join("model.safetensors");
    let mut writer = SafetensorsWriter::create(&weights, list.filter(|(name, ..)| *name != "lm_head.weight")).unwrap();
    for name in names.filter(|name| *name != "lm_head.weight") {
        let mut values = source.read_f32(name).unwrap();
        values[0] = if name.ends_with("ln_f.weight") { f32::NAN } else { values[0] };
        writer.write_f32(name, &values).unwrap();
    }
    writer.finish().unwrap();
    let message = init();
    assert!(
        message.contains("model.safetensors") && message.contains("ln_f.weight holds values that are not finite"),
        "{message}"
    );
}
