use super::*;
use crate::models::config::{BertConfig, ClipVisionConfig, Gpt2Config};
use crate::models::part::Part;

/// A small random bundle.
fn small(folder: &Path) -> Bundle {
    let vision = ClipVisionConfig {
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        image_size: 16,
        patch_size: 8,
        projection_dim: 12,
        ..ClipVisionConfig::default()
    };
    let gpt2 = Gpt2Config { vocab_size: 300, n_positions: 32, n_embd: 16, n_layer: 1, n_head: 2, ..Gpt2Config::default() };
    let bert = BertConfig {
        vocab_size: 20,
        hidden_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        intermediate_size: 24,
        ..BertConfig::default()
    };
    let configs = Configs {
        clip: ClipConfig::vision_only(vision),
        preprocessor: PreprocessorConfig::for_image_size(16),
        mapper: MapperConfig::bert(12, 16, 3, bert),
        decoder: gpt2.into(),
    };
    let new = |specs| PartPlan::New { part: Part::random(specs, 5), source: Provenance::Random { seed: 5 } };
    let [(_, clip), (_, gpt2), (_, mapper)] = configs.tensors();
    let plan = BundlePlan {
        normalized: true,
        vocabulary: Vocabulary::WordPiece { pieces: crate::models::import::made_vocabulary(300).into_bytes(), lower_case: true },
        endings: crate::text::Endings::default(),
        decoder_scope: DEFAULT_SCOPE.into(),
        prompt: None,
        clip: new(clip),
        mapper: new(mapper),
        gpt2: new(gpt2),
        clip_files: vec![],
        gpt2_files: vec![],
        configs,
    };
    build(folder, false, &plan).unwrap()
}

#[test]
fn a_bundle_comes_back_as_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let made = small(&folder.path().join("bundle"));
    let opened = Bundle::open(made.path()).unwrap();
    assert_eq!((opened.manifest(), opened.configs()), (made.manifest(), made.configs()));
    assert!(opened.normalized() && opened.lower_case());
    opened.verify().unwrap();
}

#[test]
fn new_weights_make_a_new_bundle_that_shares_what_did_not_change() {
    let folder = tempfile::tempdir().unwrap();
    let base = small(&folder.path().join("base"));
    let constant = vec![0.5f32; 3 * 16];
    let give = |name: &str| (name == "clip_project.prefix_const").then_some(constant.as_slice());
    let trained = base.with_weights(&folder.path().join("best"), false, &Provenance::Trained { steps: 3 }, give).unwrap();
    trained.verify().unwrap();
    assert_ne!(trained.fingerprint(), base.fingerprint());
    assert_eq!(trained.embedding_fingerprint(), base.embedding_fingerprint());
    assert_eq!(trained.part("mapper").unwrap().source, Provenance::Trained { steps: 3 });
    assert_eq!(trained.part("gpt2").unwrap(), base.part("gpt2").unwrap());
    let mapper = SafetensorsFile::open(trained.weights_path("mapper")).unwrap();
    assert_eq!(mapper.read_f32("clip_project.prefix_const").unwrap(), constant);
    let old = SafetensorsFile::open(base.weights_path("mapper")).unwrap();
    assert_eq!(mapper.read_f32("clip_project.linear.weight").unwrap(), old.read_f32("clip_project.linear.weight").unwrap());
    // GPT2's names have gpt2. in front, as in a checkpoint.
    let table = vec![0.25f32; 300 * 16];
    let give = |name: &str| (name == "gpt2.transformer.wte.weight").then_some(table.as_slice());
    let tuned = trained.with_weights(&folder.path().join("last"), false, &Provenance::Trained { steps: 4 }, give).unwrap();
    assert_eq!(SafetensorsFile::open(tuned.weights_path("gpt2")).unwrap().read_f32("transformer.wte.weight").unwrap(), table);
    let give = |name: &str| (name == "gpt2.transformer.wte.weight").then_some(&table[1..]);
    let error = base.with_weights(&folder.path().join("bad"), false, &Provenance::Trained { steps: 4 }, give).unwrap_err();
    assert!(error.to_string().contains("transformer.wte.weight"), "{error}");
    assert!(!folder.path().join("bad").exists());
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = small(&folder.path().join("bundle"));
    let path = bundle.path().join("gpt2/config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"n_layer\": 1", "\"n_layer\": 2")).unwrap();
    let error = Bundle::open(bundle.path()).unwrap_err().to_string();
    assert!(error.contains("gpt2/model.safetensors") && error.contains("missing: transformer.h.1.ln_1.weight"), "{error}");
    std::fs::write(&path, text.replace("\"n_embd\": 16", "\"n_embd\": 18")).unwrap();
    assert!(Bundle::open(bundle.path()).unwrap_err().to_string().contains("n_embd"));
    std::fs::write(&path, text.replace("\"n_positions\": 32", "\"n_positions\": 3")).unwrap();
    assert!(Bundle::open(bundle.path()).unwrap_err().to_string().contains("no room"));
    std::fs::write(&path, text.replace("gelu_new", "gelu")).unwrap();
    let changed = || Bundle::open(bundle.path()).unwrap_err().to_string().contains("not those it was made with");
    assert!(changed());
    std::fs::write(&path, &text).unwrap();
    let vocabulary = std::fs::read_to_string(bundle.decoder_folder().join("vocab.txt")).unwrap();
    std::fs::write(bundle.decoder_folder().join("vocab.txt"), vocabulary.trim_end().rsplit_once('\n').unwrap().0).unwrap();
    assert!(changed());
}
