SELECT pg_catalog.set_config('search_path', '', false);
CREATE SCHEMA llm_logs;
CREATE TABLE llm_logs.bodies (
    n bigint NOT NULL,
    request text,
    response text,
    bodies text
);
CREATE TABLE llm_logs.calls (
    n bigint NOT NULL,
    id text NOT NULL,
    at double precision NOT NULL,
    key_name text,
    "user" text,
    client text,
    front text,
    method text,
    path text,
    target text,
    model_asked text,
    model_served text,
    status integer NOT NULL,
    error_source text,
    error text,
    total_ms double precision,
    first_ms double precision,
    tokens_in bigint,
    tokens_cached bigint,
    tokens_out bigint,
    cost double precision,
    stream smallint,
    cache text,
    attempts text,
    losses text,
    conversation text,
    about text,
    tags text,
    images text,
    size bigint NOT NULL
);
CREATE TABLE llm_logs.conversations (
    id text NOT NULL,
    key_name text NOT NULL,
    title text,
    hidden smallint NOT NULL,
    latest bigint NOT NULL,
    at double precision NOT NULL
);
CREATE VIEW llm_logs.chatgpt_logs AS
 SELECT (rpad(c.id, 32, '0'::text))::uuid AS id,
    (b.request)::json AS request,
    (b.response)::json AS response,
    json_build_object('prompt_tokens', c.tokens_in, 'completion_tokens', c.tokens_out, 'total_tokens', (c.tokens_in + c.tokens_out)) AS usage_info,
    COALESCE(c."user", c.key_name) AS user_name,
    c.tags AS title,
    (to_timestamp(c.at) AT TIME ZONE 'UTC'::text) AS response_time,
    v.title AS convo_title,
    (v.hidden = 0) AS convo_show,
    c.conversation AS root_gpt_id
   FROM ((llm_logs.calls c
     JOIN llm_logs.bodies b ON ((b.n = c.n)))
     JOIN llm_logs.conversations v ON (((v.id = c.conversation) AND (v.key_name = COALESCE(c.key_name, ''::text)))))
  WHERE (c.about IS NULL);
CREATE TABLE llm_logs.daily (
    day text NOT NULL,
    key_name text NOT NULL,
    target text NOT NULL,
    model_served text NOT NULL,
    "user" text NOT NULL,
    calls bigint NOT NULL,
    errors bigint NOT NULL,
    tokens_in bigint NOT NULL,
    tokens_cached bigint NOT NULL,
    tokens_out bigint NOT NULL,
    cost double precision NOT NULL
);
CREATE VIEW llm_logs.image_logs AS
 SELECT (rpad(c.id, 32, '0'::text))::uuid AS id,
    (b.request)::json AS request,
    (b.response)::json AS response,
    c.cost AS usage_cost,
    COALESCE(c."user", c.key_name) AS user_name,
    c.tags AS title,
    (to_timestamp(c.at) AT TIME ZONE 'UTC'::text) AS response_time
   FROM (llm_logs.calls c
     JOIN llm_logs.bodies b ON ((b.n = c.n)))
  WHERE (c.images IS NOT NULL);
CREATE TABLE llm_logs.latency (
    day text NOT NULL,
    key_name text NOT NULL,
    target text NOT NULL,
    model_served text NOT NULL,
    what text NOT NULL,
    bucket integer NOT NULL,
    calls bigint NOT NULL
);
CREATE TABLE llm_logs.meta (
    version integer NOT NULL
);
CREATE VIEW llm_logs.meta_summarizer_log AS
 SELECT (rpad(c.id, 32, '0'::text))::uuid AS id,
    (b.request)::json AS request,
    (b.response)::json AS response,
    json_build_object('prompt_tokens', c.tokens_in, 'completion_tokens', c.tokens_out, 'total_tokens', (c.tokens_in + c.tokens_out)) AS usage_info,
    COALESCE(c."user", c.key_name) AS user_name,
    c.tags AS title,
    (to_timestamp(c.at) AT TIME ZONE 'UTC'::text) AS response_time,
    c.about AS orig_summarized_id
   FROM (llm_logs.calls c
     JOIN llm_logs.bodies b ON ((b.n = c.n)))
  WHERE (c.about IS NOT NULL);
CREATE SEQUENCE llm_logs.numbers
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
CREATE TABLE llm_logs.turns (
    mark text NOT NULL,
    conversation text NOT NULL,
    at double precision NOT NULL
);
CREATE TABLE llm_logs.words (
    n bigint NOT NULL,
    said tsvector NOT NULL
);
INSERT INTO llm_logs.bodies VALUES (1, '{"messages":[{"role":"user","content":"Why is the sky blue?"}]}', '{"choices":[{"message":{"role":"assistant","content":"answer1"}}]}', NULL);
INSERT INTO llm_logs.bodies VALUES (2, '{"messages":[{"role":"user","content":"question2"}]}', '{"choices":[{"message":{"role":"assistant","content":"answer2"}}]}', NULL);
INSERT INTO llm_logs.bodies VALUES (3, '{"messages":[{"role":"user","content":"rainy"}]}', '{"choices":[{"message":{"role":"assistant","content":"answer3"}}]}', NULL);
INSERT INTO llm_logs.bodies VALUES (4, '{"messages":[{"role":"user","content":"without a key"}]}', '{"choices":[{"message":{"role":"assistant","content":"answer4"}}]}', NULL);
INSERT INTO llm_logs.calls VALUES (1, '0000000000000000000000000001', 1700000001, 'alice', NULL, NULL, 'openai', 'POST', '', 'llama', 'm', 'real', 200, NULL, NULL, 100, 20, 10, NULL, 5, 0.5, 0, NULL, NULL, NULL, '0000000000000000000000000001', NULL, NULL, NULL, 629);
INSERT INTO llm_logs.calls VALUES (2, '0000000000000000000000000002', 1700000002, 'alice', NULL, NULL, 'openai', 'POST', '', 'llama', 'm', 'real', 200, NULL, NULL, 100, NULL, 20, NULL, 5, NULL, 0, NULL, NULL, NULL, '0000000000000000000000000001', NULL, NULL, NULL, 618);
INSERT INTO llm_logs.calls VALUES (3, '0000000000000000000000000003', 1700000003, 'bob', NULL, NULL, 'openai', 'POST', '', 'gpt', 'm', 'real', 500, NULL, 'bad', 100, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, '0000000000000000000000000003', NULL, NULL, NULL, 614);
INSERT INTO llm_logs.calls VALUES (4, '0000000000000000000000000004', 1700000004, NULL, NULL, NULL, 'openai', 'POST', '', 'llama', 'm', 'real', 200, NULL, NULL, 100, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 622);
INSERT INTO llm_logs.conversations VALUES ('0000000000000000000000000003', 'bob', 'Other', 0, 3, 1700000003);
INSERT INTO llm_logs.conversations VALUES ('0000000000000000000000000001', 'alice', 'Renamed', 0, 2, 1700000002);
INSERT INTO llm_logs.daily VALUES ('2023-11-14', 'alice', 'llama', 'real', '', 2, 0, 30, 0, 10, 0.5);
INSERT INTO llm_logs.daily VALUES ('2023-11-14', 'bob', 'gpt', 'real', '', 1, 1, 0, 0, 0, 0);
INSERT INTO llm_logs.daily VALUES ('2023-11-14', '', 'llama', 'real', '', 1, 0, 0, 0, 0, 0);
INSERT INTO llm_logs.latency VALUES ('2023-11-14', 'alice', 'llama', 'real', 'first', 31, 1);
INSERT INTO llm_logs.latency VALUES ('2023-11-14', 'alice', 'llama', 'real', 'total', 48, 2);
INSERT INTO llm_logs.latency VALUES ('2023-11-14', '', 'llama', 'real', 'total', 48, 1);
INSERT INTO llm_logs.meta VALUES (1);
INSERT INTO llm_logs.turns VALUES ('a', '0000000000000000000000000001', 1700000001);
INSERT INTO llm_logs.turns VALUES ('b', '0000000000000000000000000001', 1700000002);
INSERT INTO llm_logs.turns VALUES ('c', '0000000000000000000000000003', 1700000003);
INSERT INTO llm_logs.words VALUES (1, '''answer1'':6 ''blue'':5 ''is'':2 ''sky'':4 ''the'':3 ''why'':1');
INSERT INTO llm_logs.words VALUES (2, '''answer2'':2 ''question2'':1');
INSERT INTO llm_logs.words VALUES (3, '''answer3'':2 ''rainy'':1');
INSERT INTO llm_logs.words VALUES (4, '''a'':2 ''answer4'':4 ''key'':3 ''without'':1');
SELECT pg_catalog.setval('llm_logs.numbers', 4, true);
ALTER TABLE ONLY llm_logs.bodies
    ADD CONSTRAINT bodies_pkey PRIMARY KEY (n);
ALTER TABLE ONLY llm_logs.calls
    ADD CONSTRAINT calls_id_key UNIQUE (id);
ALTER TABLE ONLY llm_logs.calls
    ADD CONSTRAINT calls_pkey PRIMARY KEY (n);
ALTER TABLE ONLY llm_logs.conversations
    ADD CONSTRAINT conversations_pkey PRIMARY KEY (id, key_name);
ALTER TABLE ONLY llm_logs.daily
    ADD CONSTRAINT daily_pkey PRIMARY KEY (day, key_name, target, model_served, "user");
ALTER TABLE ONLY llm_logs.latency
    ADD CONSTRAINT latency_pkey PRIMARY KEY (day, key_name, target, model_served, what, bucket);
ALTER TABLE ONLY llm_logs.turns
    ADD CONSTRAINT turns_pkey PRIMARY KEY (mark);
ALTER TABLE ONLY llm_logs.words
    ADD CONSTRAINT words_pkey PRIMARY KEY (n);
CREATE INDEX calls_by_conversation ON llm_logs.calls USING btree (conversation, at);
CREATE INDEX calls_by_key ON llm_logs.calls USING btree (key_name, at, id, target, model_served, model_asked, status, front);
CREATE INDEX calls_by_time ON llm_logs.calls USING btree (at, id, key_name, target, model_served, model_asked, status, front);
CREATE INDEX conversations_by_time ON llm_logs.conversations USING btree (at, hidden, key_name, id, latest, title);
CREATE INDEX turns_by_time ON llm_logs.turns USING btree (at);
CREATE INDEX words_by_word ON llm_logs.words USING gin (said);
ALTER TABLE ONLY llm_logs.words
    ADD CONSTRAINT words_n_fkey FOREIGN KEY (n) REFERENCES llm_logs.bodies(n) ON DELETE CASCADE;
