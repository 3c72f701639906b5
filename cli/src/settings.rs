//! Every option of every command, in one table: flags, help, environment, file and limits come from here.

use phalanx_chassis::config::{Kind, Setting};

/// Where control listens, and where the others look for it, unless told otherwise.
const CONTROL_ADDRESS_DEFAULT: &str = "127.0.0.1:7400";

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident = [$section:ident] $key:ident: $kind:expr, $default:expr, $help:expr;)*) => {
        $(
            #[doc = $help]
            pub(crate) static $name: Setting = Setting {
                section: stringify!($section),
                key: stringify!($key),
                kind: $kind,
                default: $default,
                help: $help,
            };
        )*

        /// The whole table: what a configuration file may hold.
        pub(crate) static ALL: &[&Setting] = &[$(&$name),*];
    };
}

const COUNT: Kind = Kind::Integer { min: 1, max: u32::MAX as u64 };
/// Ids come from the log's index, which after a restore begins with the clock's milliseconds.
const NODE_ID: Kind = Kind::Integer { min: 1, max: i64::MAX as u64 };

settings! {
    ROUTER_LISTEN = [router] listen: Kind::Address, Some("127.0.0.1:8080"),
        "Where clients are served over HTTP";
    ROUTER_ADVERTISE = [router] advertise: Kind::Url, None,
        "The URL that the cluster knows this router by (default: the bound address)";
    ROUTER_CONTROL = [router] control: Kind::Urls, Some("http://127.0.0.1:7400"),
        "Control nodes to follow; with --engine alone, none unless named";
    ROUTER_ENGINE = [router] engine: Kind::Words, None,
        "A server that speaks OpenAI's API, as URL or NAME=URL,model=NAME,key_env=VARIABLE,price_in=N,price_out=N, of which all but the URL may be left out; prices are for a million tokens; may be given several times";
    ROUTER_AUTH = [router] auth: Kind::Only("off"), Some("off"),
        "Whether clients need a key";
    ROUTER_VIEW_FILE = [router] view_file: Kind::Path, None,
        "Where the last known cluster is kept, for a start while no control node answers";
    ROUTER_BODY_BYTES = [router] body_bytes_max: Kind::Integer { min: 1 << 10, max: 8 << 20 }, None,
        "Largest request body in bytes (default: 8388608)";
    ROUTER_CONCURRENCY = [router] concurrency_max: Kind::Integer { min: 1, max: 1 << 20 }, None,
        "Most requests in progress at once (default: 8192)";
    ROUTER_CONNECTIONS = [router] connections_max: Kind::Integer { min: 1, max: 1 << 20 }, None,
        "Most open client connections (default: 16384)";
    ROUTER_TIMEOUT = [router] request_timeout_ms: Kind::Integer { min: 1, max: 86_400_000 }, None,
        "How long a request may take when the client does not say (default: 600000)";
    ROUTER_TIMEOUT_MAX = [router] request_timeout_ms_max: Kind::Integer { min: 1, max: 86_400_000 }, None,
        "The longest time a client may ask for (default: 3600000)";
    ROUTER_DRAIN_TIMEOUT = [router] drain_timeout_ms: Kind::Integer { min: 0, max: 3_600_000 }, None,
        "How long live streams may go on once the process drains (default: 120000)";

    BREAKER_WINDOW = [breaker] breaker_window_ms: Kind::Integer { min: 100, max: 600_000 }, None,
        "How long the outcome of a request counts for its engine (default: 30000)";
    BREAKER_SAMPLES = [breaker] breaker_samples_min: Kind::Integer { min: 1, max: 128 }, None,
        "Fewest outcomes whose share of failures ejects an engine (default: 10)";
    BREAKER_PERCENT = [breaker] breaker_failure_percent: Kind::Integer { min: 1, max: 100 }, None,
        "Share of failures that ejects an engine (default: 50)";
    BREAKER_FAILURES = [breaker] breaker_failures_in_a_row: Kind::Integer { min: 1, max: 1_000 }, None,
        "Failures in a row that eject an engine (default: 5)";
    BREAKER_OPEN = [breaker] breaker_open_ms: Kind::Integer { min: 1, max: 3_600_000 }, None,
        "How long an engine is out at first; then twice as long each time (default: 5000)";
    BREAKER_OPEN_MAX = [breaker] breaker_open_ms_max: Kind::Integer { min: 1, max: 3_600_000 }, None,
        "The longest that an engine is out before it is probed (default: 60000)";
    BREAKER_PROBES = [breaker] breaker_probes: Kind::Integer { min: 1, max: 100 }, None,
        "Requests that probe an engine, all of which must succeed (default: 3)";
    BREAKER_SLOW = [breaker] breaker_slow_percent: Kind::Integer { min: 0, max: 100_000 }, None,
        "An engine is out when its first tokens take this share of its peers' time; 0: never (default: 300)";

    RETRY_PERCENT = [retry] retry_budget_percent: Kind::Integer { min: 0, max: 100 }, None,
        "Most retries per hundred requests (default: 20)";
    RETRY_FLOOR = [retry] retry_floor_per_second: Kind::Integer { min: 0, max: 10_000 }, None,
        "Retries a second that are allowed however few requests there are (default: 10)";
    RETRY_HEDGE = [retry] hedge: Kind::Switch, Some("false"),
        "Ask a second engine when the first is late with its first token; the first answer counts";
    RETRY_HEDGE_PERCENT = [retry] hedge_budget_percent: Kind::Integer { min: 1, max: 100 }, None,
        "Most second engines per hundred requests (default: 2)";

    DISPATCH_QUEUE = [dispatch] queue_max: Kind::Integer { min: 0, max: 1 << 20 }, None,
        "Most requests that wait for one model while its engines are full (default: 1024)";
    DISPATCH_ENGINE = [dispatch] engine_requests_max: Kind::Integer { min: 0, max: 1 << 20 }, None,
        "Most requests of this router at one engine; 0: as many as it computes at once (default: 0)";
    DISPATCH_TARGET = [dispatch] ttft_target_ms: Kind::Integer { min: 0, max: 3_600_000 }, None,
        "MS within which engines are soon enough, so that the cheapest of them is taken (default 0: the soonest is)";

    CONTROL_NODE_ID = [control] node_id: NODE_ID, Some("1"),
        "This node's id within the control group";
    CONTROL_LISTEN = [control] listen: Kind::Address, Some(CONTROL_ADDRESS_DEFAULT),
        "Where peers, workers and routers reach this node over gRPC";
    CONTROL_PEERS = [control] peers: Kind::Peers, None,
        "All nodes of the control group, this one included; a single node needs none";
    CONTROL_DATA_DIR = [control] data_dir: Kind::Path, None,
        "Where the control state is kept (default: phalanx-data; serve: a temporary folder)";
    CONTROL_BOOTSTRAP = [control] bootstrap: Kind::Switch, Some("false"),
        "Form the group, if this node has no state yet";

    WORKER_CONTROL = [worker] control: Kind::Urls, Some("http://127.0.0.1:7400"),
        "Control nodes to register with";
    WORKER_LISTEN = [worker] listen: Kind::Address, Some("127.0.0.1:7500"),
        "Where routers reach this worker over gRPC";
    WORKER_ADVERTISE = [worker] advertise: Kind::Url, None,
        "The URL that routers are told to dial (default: the bound address)";
    WORKER_ZONE = [worker] zone: Kind::Text, None,
        "The failure domain this worker is in";
    WORKER_MODEL = [worker] model: Kind::Path, None,
        "The model: a Hugging Face folder (default: models/demo-llm)";
    WORKER_MODEL_NAME = [worker] model_name: Kind::Text, None,
        "The name that clients ask for (default: the folder's name)";
    WORKER_MODELS = [worker] models: Kind::Path, None,
        "A folder of model folders, in place of --model: the control plane says which of them to serve";
    WORKER_COUNT = [worker] workers: Kind::Integer { min: 1, max: 64 }, Some("1"),
        "How many workers serve runs; the threads are divided among them";
    WORKER_THREADS = [worker] threads: Kind::Integer { min: 1, max: 1024 }, None,
        "CPU threads for the model (default: all cores)";
    WORKER_DRAIN_TIMEOUT = [worker] drain_timeout_ms: Kind::Integer { min: 0, max: 3_600_000 }, None,
        "How long live streams may go on here once the process drains, before routers move them to another worker (default: 120000)";
    WORKER_CPU_PATH = [worker] cpu_path: Kind::Text, Some("auto"),
        "Instruction set of the CPU's operations; auto takes the fastest there is";
    WORKER_DEVICE = [worker] device: Kind::Only("cpu"), Some("cpu"),
        "What the model runs on";
    WORKER_TP = [worker] tp: Kind::Only("1"), Some("1"),
        "Ranks that share the model by tensor parallelism";
    WORKER_KV_BLOCKS = [worker] kv_blocks: Kind::Integer { min: 2, max: 1 << 26 }, None,
        "KV cache in blocks of 16 tokens (default: as many as kv-memory-mib holds)";
    WORKER_KV_MEMORY = [worker] kv_memory_mib: Kind::Integer { min: 1, max: 1 << 24 }, None,
        "Memory for the KV cache in MiB (default: 512)";
    WORKER_STEP_TOKENS = [worker] step_tokens_max: Kind::Integer { min: 1, max: 65_536 }, None,
        "Most tokens computed in one step (default: 512)";
    WORKER_RUNNING = [worker] running_max: Kind::Integer { min: 1, max: 65_536 }, None,
        "Most sequences computed in one step (default: 64, at most step-tokens-max)";
    WORKER_WAITING = [worker] waiting_max: Kind::Integer { min: 1, max: 1 << 20 }, None,
        "Most sequences waiting for a place (default: 1024)";
    WORKER_PREFIX_CACHE = [worker] prefix_cache: Kind::OneOf(&["on", "off"]), Some("on"),
        "Whether computed prefixes are kept for later requests";

    SIM_LISTEN = [sim] listen: Kind::Address, Some("127.0.0.1:9100"),
        "Where the first engine listens; the others follow on the next ports, or on free ones with port 0";
    SIM_ENGINES = [sim] engines: COUNT, Some("1"),
        "How many engines";
    SIM_MODEL_NAME = [sim] model_name: Kind::Text, Some("sim"),
        "The name that clients ask for";
    SIM_PREFILL_RATE = [sim] prefill_rate: Kind::Decimal, Some("8000"),
        "Prompt tokens computed in a second";
    SIM_DECODE_BASE = [sim] decode_base_ms: Kind::Decimal, Some("8"),
        "Milliseconds of a step that decodes";
    SIM_DECODE_PER_SEQ = [sim] decode_per_seq_ms: Kind::Decimal, Some("0.25"),
        "Milliseconds more for each sequence in the step";
    SIM_BATCH = [sim] batch_max: Kind::Integer { min: 1, max: 65_536 }, Some("64"),
        "Most sequences computed in one step";
    SIM_WAITING = [sim] waiting_max: Kind::Integer { min: 1, max: 1 << 20 }, Some("1024"),
        "Most requests waiting for a place; more are refused with 503";
    SIM_CACHE_TOKENS = [sim] cache_tokens: Kind::Integer { min: 0, max: 1 << 40 }, Some("16384"),
        "Tokens of prompts kept for later requests";
    SIM_CONTEXT_TOKENS = [sim] context_tokens: COUNT, Some("131072"),
        "Most tokens of a prompt and its answer together";
    SIM_SPEED = [sim] speed: Kind::Decimals, Some("1"),
        "How fast each engine is beside the others; the last number is that of all that follow";
    SIM_INSTANT = [sim] instant: Kind::Switch, Some("false"),
        "Answer without any delay, to measure what a router costs";
    SIM_NATIVE = [sim] native: Kind::Switch, Some("false"),
        "Serve routers over gRPC as workers do, registered with --control";
    SIM_CONTROL = [sim] control: Kind::Urls, Some("http://127.0.0.1:7400"),
        "Control nodes to register with, with --native";
    SIM_FAULTS = [sim] faults: Kind::Text, None,
        "What goes wrong from the start, as POST /sim/faults takes it: {\"fail_share\": 0.5, \"refuse\": true, \"die_after\": 3, \"stall_after\": 3, \"slow\": 10}";

    BENCH_URL = [bench] url: Kind::Url, Some("http://127.0.0.1:8080"),
        "The router, or engine, to put under load";
    BENCH_SHAPE = [bench] shape: Kind::OneOf(&["chat", "bursty", "flat", "hot", "trace"]), Some("flat"),
        "chat: conversations over shared system prompts; bursty: these in bursts; flat: single requests with nothing in common; hot: nine of ten over one prompt; trace: from --trace";
    BENCH_RATE = [bench] rate: Kind::Decimal, None,
        "Sessions a second, at random, however slow the answers are (default: each client asks when it was answered)";
    BENCH_CONCURRENCY = [bench] concurrency: Kind::Integer { min: 1, max: 1 << 20 }, None,
        "Sessions at once (default: 1; with --rate or a trace: 8192)";
    BENCH_DURATION = [bench] duration: Kind::Decimal, None,
        "Seconds to send requests for (default: 10, unless --requests or --trace says when to end)";
    BENCH_WARMUP = [bench] warmup: Kind::Decimal, Some("0"),
        "Seconds to send requests for that are not counted, before";
    BENCH_REQUESTS = [bench] requests: Kind::Integer { min: 1, max: u64::MAX >> 1 }, None,
        "Requests to send at most";
    BENCH_TRACE = [bench] trace: Kind::Path, None,
        "JSON lines of timestamp, input_length, output_length and hash_ids, as Mooncake's traces are";
    BENCH_MODEL_NAME = [bench] model_name: Kind::Text, None,
        "The model to ask (default: the first one served)";
    BENCH_MAX_TOKENS = [bench] max_tokens: COUNT, Some("32"),
        "Tokens of an answer; in conversations, on average";
    BENCH_PROMPT_BYTES = [bench] prompt_bytes: Kind::Integer { min: 1, max: 8 << 20 }, Some("256"),
        "Bytes of what a user says; in conversations, on average";
    BENCH_PREFIXES = [bench] prefixes: Kind::Integer { min: 1, max: 1 << 20 }, Some("24"),
        "Shared system prompts";
    BENCH_PREFIX_BYTES = [bench] prefix_bytes: Kind::Integer { min: 1, max: 8 << 20 }, Some("8192"),
        "Bytes of each";
    BENCH_STREAM = [bench] stream: Kind::Switch, Some("true"),
        "Whether answers are streamed";
    BENCH_SEED = [bench] seed: Kind::Integer { min: 0, max: i64::MAX as u64 }, Some("1"),
        "What the load is drawn from: the same seed, the same requests";
    BENCH_TIMEOUT = [bench] timeout_ms: Kind::Integer { min: 1, max: 3_600_000 }, Some("60000"),
        "How long one answer may take";
    BENCH_TTFT = [bench] ttft_ms: Kind::Decimal, None,
        "Goodput counts requests with a first token within so many milliseconds";
    BENCH_TPOT = [bench] tpot_ms: Kind::Decimal, None,
        "Goodput counts requests with so many milliseconds a token at most";
    BENCH_JSON = [bench] json: Kind::Switch, Some("false"),
        "Whether to print JSON in place of a table";

    LOG_FORMAT = [telemetry] log_format: Kind::OneOf(&["text", "json"]), None,
        "How logs are written to stderr (default: text on a terminal, json otherwise)";
    LOG_LEVEL = [telemetry] log_level: Kind::LogFilter, Some("info,openraft=error"),
        "Which logs are written";
    METRICS_LISTEN = [telemetry] metrics_listen: Kind::Address, None,
        "Where /metrics and /health are served by a process without a router (default: nowhere)";
    READY_FILE = [telemetry] ready_file: Kind::Path, None,
        "A file to write once this process listens: JSON with the bound addresses";

    OPERATOR_CONTROL = [cluster] control: Kind::Urls, Some("http://127.0.0.1:7400"),
        "Control nodes to ask; any of them answers";
    OPERATOR_JSON = [cluster] json: Kind::Switch, Some("false"),
        "Whether to print JSON in place of a table";
    OPERATOR_PEPPER_FILE = [cluster] pepper_file: Kind::Path, None,
        "A file with at least 32 bytes to mix the secrets of keys with (default: the cluster's id, as version 0)";
    OPERATOR_PEPPER_VERSION = [cluster] pepper_version: COUNT, Some("1"),
        "Which pepper the file holds, so that another can take its place while older keys hold";

    CHAT_URL = [chat] url: Kind::Url, Some("http://127.0.0.1:8080"),
        "The router to talk to";
    CHAT_MODEL_NAME = [chat] model_name: Kind::Text, None,
        "The model to talk to (default: the first one served)";
    CHAT_SYSTEM = [chat] system: Kind::Text, None,
        "A system prompt to open the conversation with";
    CHAT_MAX_TOKENS = [chat] max_tokens: COUNT, None,
        "Most tokens of an answer (default: as many as the context holds)";
}

static LOGS: [&Setting; 2] = [&LOG_FORMAT, &LOG_LEVEL];
static ROUTING: [&Setting; 23] = [
    &ROUTER_ENGINE,
    &ROUTER_AUTH,
    &ROUTER_BODY_BYTES,
    &ROUTER_CONCURRENCY,
    &ROUTER_CONNECTIONS,
    &ROUTER_TIMEOUT,
    &ROUTER_TIMEOUT_MAX,
    &ROUTER_DRAIN_TIMEOUT,
    &BREAKER_WINDOW,
    &BREAKER_SAMPLES,
    &BREAKER_PERCENT,
    &BREAKER_FAILURES,
    &BREAKER_OPEN,
    &BREAKER_OPEN_MAX,
    &BREAKER_PROBES,
    &BREAKER_SLOW,
    &RETRY_PERCENT,
    &RETRY_FLOOR,
    &RETRY_HEDGE,
    &RETRY_HEDGE_PERCENT,
    &DISPATCH_QUEUE,
    &DISPATCH_ENGINE,
    &DISPATCH_TARGET,
];
static ENGINE: [&Setting; 9] = [
    &WORKER_CPU_PATH,
    &WORKER_DEVICE,
    &WORKER_TP,
    &WORKER_KV_BLOCKS,
    &WORKER_KV_MEMORY,
    &WORKER_STEP_TOKENS,
    &WORKER_RUNNING,
    &WORKER_WAITING,
    &WORKER_PREFIX_CACHE,
];

/// The options of `phalanx serve`.
pub(crate) fn serve() -> Vec<&'static Setting> {
    let own = [
        &ROUTER_LISTEN,
        &WORKER_MODEL,
        &WORKER_MODEL_NAME,
        &WORKER_COUNT,
        &WORKER_THREADS,
        &CONTROL_DATA_DIR,
        &READY_FILE,
    ];
    own.into_iter().chain(ROUTING).chain(ENGINE).chain(LOGS).collect()
}

/// The options of `phalanx control`.
pub(crate) fn control() -> Vec<&'static Setting> {
    let own = [
        &CONTROL_NODE_ID,
        &CONTROL_LISTEN,
        &CONTROL_PEERS,
        &CONTROL_DATA_DIR,
        &CONTROL_BOOTSTRAP,
        &METRICS_LISTEN,
        &READY_FILE,
    ];
    own.into_iter().chain(LOGS).collect()
}

/// The options of `phalanx worker`.
pub(crate) fn worker() -> Vec<&'static Setting> {
    let own = [
        &WORKER_CONTROL,
        &WORKER_LISTEN,
        &WORKER_ADVERTISE,
        &WORKER_ZONE,
        &WORKER_MODEL,
        &WORKER_MODEL_NAME,
        &WORKER_MODELS,
        &WORKER_THREADS,
        &WORKER_DRAIN_TIMEOUT,
        &METRICS_LISTEN,
        &READY_FILE,
    ];
    own.into_iter().chain(ENGINE).chain(LOGS).collect()
}

/// The options of `phalanx router`.
pub(crate) fn router() -> Vec<&'static Setting> {
    let own = [&ROUTER_CONTROL, &ROUTER_LISTEN, &ROUTER_ADVERTISE, &ROUTER_VIEW_FILE, &READY_FILE];
    own.into_iter().chain(ROUTING).chain(LOGS).collect()
}

/// The options of `phalanx bench`.
pub(crate) fn bench() -> Vec<&'static Setting> {
    vec![
        &BENCH_URL,
        &BENCH_SHAPE,
        &BENCH_RATE,
        &BENCH_CONCURRENCY,
        &BENCH_DURATION,
        &BENCH_WARMUP,
        &BENCH_REQUESTS,
        &BENCH_TRACE,
        &BENCH_MODEL_NAME,
        &BENCH_MAX_TOKENS,
        &BENCH_PROMPT_BYTES,
        &BENCH_PREFIXES,
        &BENCH_PREFIX_BYTES,
        &BENCH_STREAM,
        &BENCH_SEED,
        &BENCH_TIMEOUT,
        &BENCH_TTFT,
        &BENCH_TPOT,
        &BENCH_JSON,
    ]
}

/// The options of `phalanx engine-sim`.
pub(crate) fn engine_sim() -> Vec<&'static Setting> {
    let own = [
        &SIM_LISTEN,
        &SIM_ENGINES,
        &SIM_MODEL_NAME,
        &SIM_PREFILL_RATE,
        &SIM_DECODE_BASE,
        &SIM_DECODE_PER_SEQ,
        &SIM_BATCH,
        &SIM_WAITING,
        &SIM_CACHE_TOKENS,
        &SIM_CONTEXT_TOKENS,
        &SIM_SPEED,
        &SIM_INSTANT,
        &SIM_NATIVE,
        &SIM_CONTROL,
        &SIM_FAULTS,
        &READY_FILE,
    ];
    own.into_iter().chain(LOGS).collect()
}

/// The options of every operator command.
pub(crate) fn operator() -> Vec<&'static Setting> {
    vec![&OPERATOR_CONTROL, &OPERATOR_JSON]
}

/// The options of the commands that make keys.
pub(crate) fn key_maker() -> Vec<&'static Setting> {
    let own = [&OPERATOR_PEPPER_FILE, &OPERATOR_PEPPER_VERSION];
    operator().into_iter().chain(own).collect()
}

/// The options of `phalanx chat`. It shows a conversation, not logs.
pub(crate) fn chat() -> Vec<&'static Setting> {
    vec![&CHAT_URL, &CHAT_MODEL_NAME, &CHAT_SYSTEM, &CHAT_MAX_TOKENS]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_default_is_a_value_that_its_setting_accepts() {
        for setting in ALL {
            if let Some(default) = setting.default {
                let parsed = setting.kind.parse(default);
                assert!(parsed.is_ok(), "[{}] {}: {parsed:?}", setting.section, setting.key);
            }
        }
    }

    #[test]
    fn no_key_is_listed_twice_and_every_setting_belongs_to_a_command() {
        let keys: BTreeSet<_> = ALL.iter().map(|setting| (setting.section, setting.key)).collect();
        assert_eq!(keys.len(), ALL.len());
        let commands = [
            serve(),
            control(),
            worker(),
            router(),
            engine_sim(),
            bench(),
            operator(),
            key_maker(),
            chat(),
        ];
        for settings in &commands {
            let flags: BTreeSet<_> = settings.iter().map(|setting| setting.flag()).collect();
            assert_eq!(flags.len(), settings.len(), "a command has two options of one name");
        }
        let offered: BTreeSet<_> =
            commands.iter().flatten().map(|setting| (setting.section, setting.key)).collect();
        assert_eq!(offered, keys);
    }
}
