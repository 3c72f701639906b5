use super::*;

const LISTEN: Setting = Setting {
    section: "router",
    key: "listen",
    kind: Kind::Address,
    default: Some("127.0.0.1:8080"),
    help: "where to listen",
};
const BLOCKS: Setting = Setting {
    section: "worker",
    key: "kv_blocks",
    kind: Kind::Integer { min: 1, max: 1000 },
    default: None,
    help: "how many blocks",
};
const CONTROL: Setting = Setting {
    section: "router",
    key: "control",
    kind: Kind::Urls,
    default: None,
    help: "control nodes",
};
const TP: Setting = Setting {
    section: "worker",
    key: "tp",
    kind: Kind::Only("1"),
    default: Some("1"),
    help: "ranks",
};
static SCHEMA: [&Setting; 4] = [&LISTEN, &BLOCKS, &CONTROL, &TP];

/// Blocks are few where nobody but this machine is served.
fn relations(resolved: &Resolved) -> Vec<ConfigFault> {
    let blocks = resolved.integer(&BLOCKS).filter(|blocks| *blocks > 500);
    let is_local = resolved.text(&LISTEN).is_some_and(|listen| listen.starts_with("127."));
    let fault =
        blocks.filter(|_| is_local).and_then(|_| resolved.fault(&BLOCKS, "must be few".to_owned()));
    fault.into_iter().collect()
}

fn resolve_from(
    flags: &[(&str, &str)],
    environment: &[(&str, &str)],
    file: &str,
) -> Result<Resolved, Vec<String>> {
    let find = |pairs: &[(&str, &str)], name: &str| {
        pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    };
    let file = ConfigFile::from_text("phalanx.toml", file);
    let sources = Sources {
        flag: &|setting| find(flags, &setting.flag()),
        environment: &|variable| find(environment, variable),
        file: Some(&file),
    };
    resolve(&SCHEMA, &SCHEMA, &sources, &relations)
        .map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn check_faults(file: &str, expected: &[&str]) {
    let faults = resolve_from(&[], &[], file).expect_err("the file is faulty");
    assert_eq!(faults, expected);
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let file = "[router]\nlisten = \"file:1\"\n";
    let (flag, variable) = ([("listen", "flag:3")], [("PHALANX_LISTEN", "environment:2")]);
    for (flags, environment, file, expected) in [
        (&flag[..], &variable[..], file, ("flag:3", Origin::Flag)),
        (&[], &variable[..], file, ("environment:2", Origin::Environment)),
        (&[], &[], file, ("file:1", Origin::File)),
        (&[], &[], "", ("127.0.0.1:8080", Origin::Default)),
    ] {
        let resolved = resolve_from(flags, environment, file).expect("all sources are good");
        let got = (resolved.text(&LISTEN).unwrap(), resolved.origin(&LISTEN).unwrap().clone());
        assert_eq!(got, expected);
    }
}

#[test]
fn every_fault_of_a_file_is_told_at_once_with_its_line() {
    check_faults(
        "[router]\nlisten = \"nowhere\"\ncolour = 1\n\n[wroker]\na = 1\n[worker]\nkv_blocks = 0\ntp = \"2\"\n[tls]\n",
        &[
            "phalanx.toml:2: [router] listen = \"nowhere\": must be HOST:PORT with a port from 0 to 65535",
            "phalanx.toml:3: [router] colour = 1: unknown key, must be one of listen, control",
            "phalanx.toml:5: [wroker]: unknown section, must be one of router, worker",
            "phalanx.toml:8: [worker] kv_blocks = 0: must be a whole number from 1 to 1000",
            "phalanx.toml:9: [worker] tp = \"2\": must be 1: other values are not available in this build",
            "phalanx.toml:10: [tls]: not available in this build",
        ],
    );
}

#[test]
fn a_syntax_error_hides_no_other_fault() {
    let faults = resolve_from(&[], &[], "[router]\nlisten = = 3\n[worker]\nkv_blocks = \"many\"\n")
        .unwrap_err();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("phalanx.toml:2: listen = = 3: not TOML: "), "{faults:?}");
    assert!(
        faults[1]
            .starts_with("phalanx.toml:4: [worker] kv_blocks = \"many\": must be a whole number")
    );
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    check_faults(
        "[router]\ncontrol = [1]\nlisten = 80\n[worker]\nkv_blocks = true\n",
        &[
            "phalanx.toml:2: [router] control = [1]: must be one or more URLs as http://HOST:PORT, got array",
            "phalanx.toml:3: [router] listen = 80: must be HOST:PORT with a port from 0 to 65535, got integer",
            "phalanx.toml:5: [worker] kv_blocks = true: must be a whole number from 1 to 1000, got boolean",
        ],
    );
}

#[test]
fn faults_of_flags_and_environment_join_those_of_the_file() {
    let faults = resolve_from(
        &[("kv-blocks", "-1")],
        &[("PHALANX_CONTROL", "ftp://x"), ("PHALANX_TP", "")],
        "x = 1\n",
    )
    .unwrap_err();
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(faults[0].starts_with("phalanx.toml:1: [x]: unknown section"), "{faults:?}");
    assert!(faults[1].starts_with("--kv-blocks -1: must be a whole number"), "{faults:?}");
    assert!(
        faults[2].starts_with("PHALANX_CONTROL=ftp://x: must be one or more URLs"),
        "{faults:?}"
    );
}

#[test]
fn a_list_is_written_with_commas_or_as_an_array() {
    let urls = ["http://a:1", "http://b:2"];
    for (variable, file) in [
        ("http://a:1,http://b:2", ""),
        ("", "[router]\ncontrol = [\"http://a:1\", \"http://b:2\"]\n"),
        ("", "[router]\ncontrol = \"http://a:1, http://b:2\"\n"),
    ] {
        let resolved = resolve_from(&[], &[("PHALANX_CONTROL", variable)], file).unwrap();
        assert_eq!(resolved.list(&CONTROL), urls);
    }
}

#[test]
fn numbers_are_read_in_every_notation_of_toml() {
    let resolved = resolve_from(&[], &[], "[worker]\nkv_blocks = 0x1_0\n").unwrap();
    assert_eq!(resolved.integer(&BLOCKS), Some(16));
}

#[test]
fn a_fault_between_settings_is_told_where_the_value_was_set() {
    let file = "[worker]\nkv_blocks = 501\ntp = 2\n";
    let faults = resolve_from(&[], &[], file).unwrap_err();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert_eq!(faults[1], "phalanx.toml:2: [worker] kv_blocks = 501: must be few");
    let faults = resolve_from(&[("kv-blocks", "502")], &[], "").unwrap_err();
    assert_eq!(faults, ["--kv-blocks 502: must be few"]);
    let faults = resolve_from(&[], &[("PHALANX_KV_BLOCKS", "503")], "").unwrap_err();
    assert_eq!(faults, ["PHALANX_KV_BLOCKS=503: must be few"]);
}

#[test]
fn a_setting_that_could_not_be_read_has_no_value_but_is_known_as_faulty() {
    let file = ConfigFile::from_text("phalanx.toml", "[router]\nlisten = \"nowhere\"\n");
    let sources = Sources { flag: &|_| None, environment: &|_| None, file: Some(&file) };
    let relations = |resolved: &Resolved| {
        assert!(resolved.is_faulty(&LISTEN) && !resolved.is_faulty(&BLOCKS));
        assert_eq!(resolved.text(&LISTEN), None, "the default stands for what was refused");
        assert_eq!(resolved.fault(&LISTEN, String::new()), None);
        Vec::new()
    };
    let faults = resolve(&SCHEMA, &SCHEMA, &sources, &relations).unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:?}");
}
