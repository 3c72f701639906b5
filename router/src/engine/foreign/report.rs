//! What a foreign engine says of itself: the models it lists, the load in its metrics. Pure.

use serde::Deserialize;

/// Metrics with the requests that an engine computes, as vLLM and SGLang name them.
const RUNNING: [&str; 2] = ["vllm:num_requests_running", "sglang:num_running_reqs"];
/// And with those that wait there.
const WAITING: [&str; 2] = ["vllm:num_requests_waiting", "sglang:num_queue_reqs"];

/// `GET /v1/models`.
#[derive(Debug, Deserialize)]
struct ModelList {
    data: Vec<ListedModel>,
}

/// One model, as far as clients are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct ListedModel {
    pub(super) id: String,
    #[serde(default)]
    pub(super) max_model_len: Option<u32>,
}

/// The models that an answer to `GET /v1/models` lists; none if it is no such list.
pub(super) fn models(body: &[u8]) -> Option<Vec<ListedModel>> {
    let list: ModelList = serde_json::from_slice(body).ok()?;
    Some(list.data)
}

/// The requests that metrics tell of, running and waiting; none if they do not.
pub(super) fn sequences(metrics: &str) -> Option<(u32, u32)> {
    Some((sum(metrics, &RUNNING)?, sum(metrics, &WAITING)?))
}

/// The sum over all labels of the metrics with one of these names; none if there is none.
fn sum(metrics: &str, names: &[&str]) -> Option<u32> {
    let of_line = |line: &str| {
        let name = line.split(['{', ' ']).next().filter(|name| names.contains(name))?;
        // After the labels, whose values may hold spaces, comes the value and perhaps a time.
        let rest = line.rsplit_once('}').map_or(&line[name.len()..], |(_, rest)| rest);
        rest.split_ascii_whitespace().next()?.parse::<f64>().ok()
    };
    let counts = metrics.lines().filter_map(of_line).filter(|count| count.is_finite());
    counts.map(whole).reduce(u32::saturating_add)
}

/// Counts are exported as floating point numbers.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is clamped")]
const fn whole(count: f64) -> u32 {
    count.clamp(0.0, u32::MAX as f64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_models_is_read() {
        let listed = models(
            br#"{"object":"list","data":[{"id":"a","max_model_len":4096,"owned_by":"x"},{"id":"b"}]}"#,
        );
        let model = |id: &str, max_model_len| ListedModel { id: id.to_owned(), max_model_len };
        assert_eq!(listed, Some(vec![model("a", Some(4096)), model("b", None)]));
        assert_eq!(models(b"{}"), None);
        assert_eq!(models(b"<html>"), None);
    }

    #[test]
    fn running_and_waiting_requests_are_summed_over_labels() {
        let metrics = "# HELP vllm:num_requests_running x\n\
            # TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a b\"} 3.0\n\
            vllm:num_requests_running{engine=\"1\"} 2.0 1700000000\n\
            vllm:num_requests_waiting 4\n\
            vllm:num_requests_running_total 9\n\
            vllm:num_requests_waiting{x=\"y\"} NaN\n";
        assert_eq!(sequences(metrics), Some((5, 4)));
        assert_eq!(sequences("process_cpu_seconds_total 1\n"), None);
        let sglang = "sglang:num_queue_reqs -1\nsglang:num_running_reqs 1e99\n";
        assert_eq!(sequences(sglang), Some((u32::MAX, 0)));
    }
}
