// Judges what the project makes by the very code that will read it in a cluster: kstatus, which Helm and Flux wait
// with, and Prometheus's own parser and engine. Each command reads standard input (rules YAML, the others JSON), and writes
// JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kjson "k8s.io/apimachinery/pkg/util/json"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string, in io.Reader, out io.Writer) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	if len(arguments) != 1 {
		return fmt.Errorf("usage: judge kstatus|health|rules|metrics|values")
	}
	var answer any
	switch arguments[0] {
	case "kstatus":
		answer, err = statuses(text)
	case "rules":
		answer, err = ruleErrors(text)
	case "metrics":
		answer, err = metricNames(text)
	case "health":
		answer, err = health(text)
	case "values":
		answer, err = values(text)
	default:
		err = fmt.Errorf("unknown command %q", arguments[0])
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(answer)
}

// statuses is the kstatus word for each object of a list.
func statuses(text []byte) ([]string, error) {
	var objects []any // Kubernetes's own reader makes numbers int64, as kstatus wants them.
	if err := kjson.Unmarshal(text, &objects); err != nil {
		return nil, err
	}
	words := make([]string, 0, len(objects))
	for _, object := range objects {
		result, err := status.Compute(&unstructured.Unstructured{Object: object.(map[string]any)})
		if err != nil {
			return nil, err
		}
		words = append(words, result.Status.String())
	}
	return words, nil
}

// health is what a health check of Argo CD says about each object: its Lua script, run as Argo CD runs it.
func health(text []byte) ([]map[string]string, error) {
	var asked struct {
		Script  string           `json:"script"`
		Objects []map[string]any `json:"objects"`
	}
	if err := json.Unmarshal(text, &asked); err != nil {
		return nil, err
	}
	answers := make([]map[string]string, 0, len(asked.Objects))
	for _, object := range asked.Objects {
		answer, err := checked(asked.Script, object)
		if err != nil {
			return nil, err
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

func checked(script string, object map[string]any) (map[string]string, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	lua.OpenBase(state)
	lua.OpenTable(state)
	state.SetGlobal("obj", asLua(state, object))
	if err := state.DoString(script); err != nil {
		return nil, err
	}
	answer := map[string]string{}
	if table, ok := state.Get(-1).(*lua.LTable); ok {
		table.ForEach(func(key, value lua.LValue) { answer[key.String()] = value.String() })
	}
	return answer, nil
}

func asLua(state *lua.LState, value any) lua.LValue {
	switch known := value.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, item := range known {
			table.RawSetString(key, asLua(state, item))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, item := range known {
			table.Append(asLua(state, item))
		}
		return table
	case string:
		return lua.LString(known)
	case float64:
		return lua.LNumber(known)
	case bool:
		return lua.LBool(known)
	default:
		return lua.LNil
	}
}

// ruleErrors is what Prometheus has against a file of rules; empty where it would load it.
func ruleErrors(text []byte) ([]string, error) {
	_, problems := rulefmt.Parse(text, false)
	words := make([]string, 0, len(problems))
	for _, problem := range problems {
		words = append(words, problem.Error())
	}
	return words, nil
}

// metricNames is, for each expression of a list, the metrics that it reads. An error names the expression.
func metricNames(text []byte) ([][]string, error) {
	var expressions []string
	if err := json.Unmarshal(text, &expressions); err != nil {
		return nil, err
	}
	found := make([][]string, 0, len(expressions))
	for _, expression := range expressions {
		tree, err := parser.ParseExpr(expression)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", expression, err)
		}
		names := []string{}
		parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
			if selector, ok := node.(*parser.VectorSelector); ok {
				names = append(names, selector.Name)
			}
			return nil
		})
		found = append(found, names)
	}
	return found, nil
}

// question asks what an expression gives at a time, over series in promtool's notation.
type question struct {
	Series     string  `json:"series"`
	Expression string  `json:"expression"`
	Minutes    float64 `json:"minutes"`
}

// failure lets promqltest complain without a testing.T.
type failure struct{}

func (failure) Fatal(arguments ...any)                 { panic(fmt.Sprint(arguments...)) }
func (failure) Fatalf(format string, arguments ...any) { panic(fmt.Sprintf(format, arguments...)) }
func (failure) Errorf(format string, arguments ...any) { panic(fmt.Sprintf(format, arguments...)) }
func (failure) Logf(string, ...any)                    {}
func (failure) FailNow()                               { panic("failed") }
func (failure) Helper()                                {}
func (failure) Cleanup(func())                         {}

// values is, for each question, the values that the expression gives, by labels.
func values(text []byte) ([]map[string]float64, error) {
	var questions []question
	if err := json.Unmarshal(text, &questions); err != nil {
		return nil, err
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1000000, Timeout: time.Minute})
	answers := make([]map[string]float64, 0, len(questions))
	for _, asked := range questions {
		answer, err := evaluated(engine, asked)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", asked.Expression, err)
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

func evaluated(engine *promql.Engine, asked question) (map[string]float64, error) {
	storage := promqltest.LoadedStorage(failure{}, asked.Series)
	defer storage.Close()
	at := time.Unix(0, 0).Add(time.Duration(asked.Minutes * float64(time.Minute)))
	query, err := engine.NewInstantQuery(context.Background(), storage, nil, asked.Expression, at)
	if err != nil {
		return nil, err
	}
	defer query.Close()
	vector, err := query.Exec(context.Background()).Vector()
	if err != nil {
		return nil, err
	}
	answer := map[string]float64{}
	for _, sample := range vector {
		answer[sample.Metric.MatchLabels(true, labels.MetricName).String()] = sample.F
	}
	return answer, nil
}
