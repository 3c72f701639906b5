//! Text to tokens and back.

use super::*;

#[tokio::test]
async fn texts_and_tokens_that_would_not_fit_a_message_are_refused() {
    let mut scene = scene().await;
    let request = pb::TokenizeRequest {
        model: "demo".to_owned(),
        input: Some(pb::tokenize_request::Input::Text("a".repeat(TOKENIZED_BYTES_MAX + 1))),
        add_special_tokens: true,
    };
    let fault = from_status(&scene.client.tokenize(request).await.unwrap_err());
    assert_eq!((fault.code, fault.param.as_deref()), (FaultCode::InvalidRequest, Some("prompt")));
    let longest = (0..3072).max_by_key(|id| scene.text.token_bytes(*id).len()).unwrap();
    for count in [DETOKENIZED_IDS_MAX + 1, DETOKENIZED_IDS_MAX] {
        let request = pb::DetokenizeRequest { model: "demo".to_owned(), ids: vec![longest; count] };
        let fault = from_status(&scene.client.detokenize(request).await.unwrap_err());
        assert_eq!(
            (fault.code, fault.param.as_deref()),
            (FaultCode::InvalidRequest, Some("tokens"))
        );
    }
}

#[tokio::test]
async fn text_is_tokenised_and_back_for_the_router() {
    let mut scene = scene().await;
    let long = "Hello world. ".repeat(2000);
    for text in ["Hello world", long.as_str()] {
        let request = pb::TokenizeRequest {
            model: "demo".to_owned(),
            input: Some(pb::tokenize_request::Input::Text(text.to_owned())),
            add_special_tokens: true,
        };
        let tokenized = scene.client.tokenize(request).await.unwrap().into_inner();
        assert_eq!(tokenized.ids, scene.ids(text));
        assert_eq!(tokenized.ids.len(), tokenized.tokens.len());
        assert_eq!(tokenized.tokens.concat().replace('Ġ', " "), text);
        assert_eq!(tokenized.context_tokens_max, CONTEXT);
        let request = pb::DetokenizeRequest { model: "demo".to_owned(), ids: tokenized.ids };
        let back = scene.client.detokenize(request).await.unwrap().into_inner();
        assert_eq!(back.text, text);
    }
    let request = pb::DetokenizeRequest { model: "demo".to_owned(), ids: vec![9999] };
    let fault = from_status(&scene.client.detokenize(request).await.unwrap_err());
    assert_eq!(fault.param.as_deref(), Some("tokens"));
    scene.load.send_replace(EngineLoad::default());
}
