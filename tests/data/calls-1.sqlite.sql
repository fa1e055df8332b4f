BEGIN TRANSACTION;
CREATE TABLE bodies (n INTEGER PRIMARY KEY, request TEXT, response TEXT, bodies TEXT);
INSERT INTO "bodies" VALUES(1,'{"messages":[{"role":"user","content":"Why is the sky blue?"}]}','{"choices":[{"message":{"role":"assistant","content":"answer1"}}]}',NULL);
INSERT INTO "bodies" VALUES(2,'{"messages":[{"role":"user","content":"question2"}]}','{"choices":[{"message":{"role":"assistant","content":"answer2"}}]}',NULL);
INSERT INTO "bodies" VALUES(3,'{"messages":[{"role":"user","content":"rainy"}]}','{"choices":[{"message":{"role":"assistant","content":"answer3"}}]}',NULL);
INSERT INTO "bodies" VALUES(4,'{"messages":[{"role":"user","content":"without a key"}]}','{"choices":[{"message":{"role":"assistant","content":"answer4"}}]}',NULL);
CREATE TABLE calls (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, "at" DOUBLE PRECISION NOT NULL, key_name TEXT,
    "user" TEXT, client TEXT, front TEXT, method TEXT, path TEXT, target TEXT, model_asked TEXT, model_served TEXT,
    status INTEGER NOT NULL, error_source TEXT, error TEXT, total_ms DOUBLE PRECISION, first_ms DOUBLE PRECISION,
    tokens_in BIGINT, tokens_cached BIGINT, tokens_out BIGINT, cost DOUBLE PRECISION, stream SMALLINT, cache TEXT,
    attempts TEXT, losses TEXT, conversation TEXT, about TEXT, tags TEXT, images TEXT, size BIGINT NOT NULL);
INSERT INTO "calls" VALUES(1,'0000000000000000000000000001',1700000001.0,'alice',NULL,NULL,'openai','POST','','llama','m','real',200,NULL,NULL,100.0,20.0,10,NULL,5,0.5,0,NULL,NULL,NULL,'0000000000000000000000000001',NULL,NULL,NULL,629);
INSERT INTO "calls" VALUES(2,'0000000000000000000000000002',1700000002.0,'alice',NULL,NULL,'openai','POST','','llama','m','real',200,NULL,NULL,100.0,NULL,20,NULL,5,NULL,0,NULL,NULL,NULL,'0000000000000000000000000001',NULL,NULL,NULL,618);
INSERT INTO "calls" VALUES(3,'0000000000000000000000000003',1700000003.0,'bob',NULL,NULL,'openai','POST','','gpt','m','real',500,NULL,'bad',100.0,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,'0000000000000000000000000003',NULL,NULL,NULL,614);
INSERT INTO "calls" VALUES(4,'0000000000000000000000000004',1700000004.0,NULL,NULL,NULL,'openai','POST','','llama','m','real',200,NULL,NULL,100.0,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,622);
CREATE TABLE conversations (id TEXT NOT NULL, key_name TEXT NOT NULL, title TEXT, hidden SMALLINT NOT NULL,
    latest BIGINT NOT NULL, "at" DOUBLE PRECISION NOT NULL, PRIMARY KEY (id, key_name)) WITHOUT ROWID;
INSERT INTO "conversations" VALUES('0000000000000000000000000001','alice','Renamed',0,2,1700000002.0);
INSERT INTO "conversations" VALUES('0000000000000000000000000003','bob','Other',0,3,1700000003.0);
CREATE TABLE daily (day TEXT NOT NULL, key_name TEXT NOT NULL, target TEXT NOT NULL, model_served TEXT NOT NULL,
    "user" TEXT NOT NULL, calls BIGINT NOT NULL, errors BIGINT NOT NULL, tokens_in BIGINT NOT NULL,
    tokens_cached BIGINT NOT NULL, tokens_out BIGINT NOT NULL, cost DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (day, key_name, target, model_served, "user")) WITHOUT ROWID;
INSERT INTO "daily" VALUES('2023-11-14','','llama','real','',1,0,0,0,0,0.0);
INSERT INTO "daily" VALUES('2023-11-14','alice','llama','real','',2,0,30,0,10,0.5);
INSERT INTO "daily" VALUES('2023-11-14','bob','gpt','real','',1,1,0,0,0,0.0);
CREATE TABLE latency (day TEXT NOT NULL, key_name TEXT NOT NULL, target TEXT NOT NULL, model_served TEXT NOT NULL,
    what TEXT NOT NULL, bucket INTEGER NOT NULL, calls BIGINT NOT NULL,
    PRIMARY KEY (day, key_name, target, model_served, what, bucket)) WITHOUT ROWID;
INSERT INTO "latency" VALUES('2023-11-14','','llama','real','total',48,1);
INSERT INTO "latency" VALUES('2023-11-14','alice','llama','real','first',31,1);
INSERT INTO "latency" VALUES('2023-11-14','alice','llama','real','total',48,2);
CREATE TABLE turns (mark TEXT PRIMARY KEY, conversation TEXT NOT NULL, "at" DOUBLE PRECISION NOT NULL) WITHOUT ROWID;
INSERT INTO "turns" VALUES('a','0000000000000000000000000001',1700000001.0);
INSERT INTO "turns" VALUES('b','0000000000000000000000000001',1700000002.0);
INSERT INTO "turns" VALUES('c','0000000000000000000000000003',1700000003.0);
CREATE VIRTUAL TABLE words USING fts5(said, content='', detail=none);
INSERT INTO words(rowid, said) VALUES(1, 'Why is the sky blue? answer1');
INSERT INTO words(rowid, said) VALUES(2, 'question2 answer2');
INSERT INTO words(rowid, said) VALUES(3, 'rainy answer3');
INSERT INTO words(rowid, said) VALUES(4, 'without a key answer4');
CREATE INDEX calls_by_time ON calls ("at", id, key_name, target, model_served, model_asked, status, front);
CREATE INDEX calls_by_key ON calls (key_name, "at", id, target, model_served, model_asked, status, front);
CREATE INDEX calls_by_conversation ON calls (conversation, "at");
CREATE INDEX conversations_by_time ON conversations ("at", hidden, key_name, id, latest, title);
CREATE INDEX turns_by_time ON turns ("at");
COMMIT;
PRAGMA user_version = 1;
PRAGMA application_id = 1836019564;
