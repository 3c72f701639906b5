//! `phalanx engine-sim`: simulated engines, so that routing is measured without GPUs.

use phalanx_chassis::config::{Resolved, Setting};
use phalanx_engine_sim::{RawSim, Simulated};
use serde_json::json;

use crate::failure::{Failure, chain};
use crate::ready::write_ready_file;
use crate::roles::{Role, Roles};
use crate::worker::number;
use crate::{say, settings, start_logs};

/// Runs the engines until they are drained. Their addresses are printed, one JSON line each.
///
/// # Errors
/// When they cannot start, or one of them ends by itself.
pub(crate) async fn run(resolved: &Resolved) -> Result<(), Failure> {
    start_logs(resolved)?;
    let mut roles = Roles::new()?;
    let config = raw(resolved)
        .validate()
        .map_err(|faults| Failure::Usage(faults.iter().map(ToString::to_string).collect()))?;
    let mut engines = Vec::new();
    for index in 0..config.engines() {
        let drain = roles.drain(Role::Worker);
        let engine = Simulated::bind(&config, index, drain).await.map_err(|error| {
            Failure::Failed(format!("engine {index} cannot start: {}", chain(&error)))
        })?;
        let addresses = engine.addresses();
        let line = json!({
            "engine": index,
            "url": format!("http://{}", addresses.serving),
            "admin": format!("http://{}", addresses.admin),
        });
        say(&format!("{line}\n"));
        engines.push(line);
        roles.start(Role::Worker, async move {
            Box::pin(engine.run()).await.map_err(|error| chain(&error))
        });
    }
    write_ready_file(resolved, &json!({"engines": engines}))?;
    roles.run().await
}

/// The engines as they were asked for.
pub(crate) fn raw(resolved: &Resolved) -> RawSim {
    let decimal = |setting: &Setting| resolved.decimal(setting);
    RawSim {
        listen: resolved.text(&settings::SIM_LISTEN).unwrap_or_default().to_owned(),
        engines: number(resolved, &settings::SIM_ENGINES),
        model_name: resolved.text(&settings::SIM_MODEL_NAME).map(str::to_owned),
        prefill_rate: decimal(&settings::SIM_PREFILL_RATE),
        decode_base_ms: decimal(&settings::SIM_DECODE_BASE),
        decode_per_seq_ms: decimal(&settings::SIM_DECODE_PER_SEQ),
        batch_max: number(resolved, &settings::SIM_BATCH),
        waiting_max: number(resolved, &settings::SIM_WAITING),
        cache_tokens: resolved.integer(&settings::SIM_CACHE_TOKENS),
        context_tokens: number(resolved, &settings::SIM_CONTEXT_TOKENS),
        speeds: resolved
            .list(&settings::SIM_SPEED)
            .iter()
            .filter_map(|speed| speed.parse().ok())
            .collect(),
        instant: resolved.is_on(&settings::SIM_INSTANT),
        native: resolved.is_on(&settings::SIM_NATIVE),
        control: resolved.list(&settings::SIM_CONTROL).to_vec(),
        faults: resolved.text(&settings::SIM_FAULTS).map(str::to_owned),
    }
}
