//! A model folder that cannot be served says which file, which tensor or key, and what was expected.

use std::fs;
use std::path::Path;

use phalanx_kernels::cpu::CpuPath;
use phalanx_worker::engine::{EngineConfig, RawEngine};
use phalanx_worker::load::{LoadOptions, load};

use crate::harness::demo_folder;

/// Loads a copy of the demo model after `spoil` had its way with it; the error, with FOLDER for its path.
#[track_caller]
fn check(spoil: impl FnOnce(&Path), expected: &str) {
    let copy = tempfile::tempdir().unwrap();
    for name in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(demo_folder().join(name), copy.path().join(name)).unwrap();
    }
    spoil(copy.path());
    let options = LoadOptions {
        folder: copy.path().to_owned(),
        revision: None,
        engine: EngineConfig::try_from(RawEngine::default()).unwrap(),
        threads: 1,
        cpu_path: CpuPath::Portable,
    };
    let error = load(&options, Box::new(|_| {}), &mut |_, _| {}).unwrap_err();
    let message = error.to_string().replace(&copy.path().display().to_string(), "FOLDER");
    assert_eq!(message, expected);
}

fn edit(folder: &Path, file: &str, from: &str, to: &str) {
    let path = folder.join(file);
    let bytes = fs::read(&path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    let edited = [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat();
    fs::write(path, edited).unwrap();
}

#[test]
fn a_missing_tensor() {
    check(
        |folder| edit(folder, "model.safetensors", "model.norm.weight", "model.morn.weight"),
        "FOLDER holds no tensor model.norm.weight, expected with shape [256]",
    );
}

#[test]
fn a_tensor_of_another_shape() {
    check(
        |folder| {
            edit(folder, "config.json", "\"intermediate_size\": 704", "\"intermediate_size\": 712");
        },
        "FOLDER/model.safetensors: tensor model.layers.0.mlp.gate_proj.weight is of shape [704, 256], \
         expected shape [712, 256]",
    );
}

#[test]
fn an_unknown_architecture() {
    check(
        |folder| edit(folder, "config.json", "LlamaForCausalLM", "GPT2LMHeadModel"),
        "FOLDER/config.json: architectures is [\"GPT2LMHeadModel\"], expected one of LlamaForCausalLM",
    );
}

#[test]
fn a_truncated_file() {
    check(
        |folder| {
            let path = folder.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..1_000_000]).unwrap();
        },
        "FOLDER/model.safetensors is truncated: it has 1000000 bytes, its header promises 13386064",
    );
}

#[test]
fn a_configuration_that_is_no_json() {
    check(
        |folder| fs::write(folder.join("config.json"), "{").unwrap(),
        "FOLDER/config.json is malformed: EOF while parsing an object at line 1 column 1",
    );
}

#[test]
fn a_folder_without_weights() {
    check(
        |folder| fs::remove_file(folder.join("model.safetensors")).unwrap(),
        "cannot read FOLDER/model.safetensors",
    );
}

#[test]
fn a_shape_that_cannot_be_cut_into_virtual_shards() {
    check(
        |folder| {
            edit(folder, "config.json", "\"intermediate_size\": 704", "\"intermediate_size\": 700");
        },
        "FOLDER/config.json: intermediate_size is 700, expected a multiple of 8",
    );
}
