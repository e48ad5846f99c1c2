package nomad

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/hashicorp/nomad/api"
)

// What is handed over says all that is read of what comes over a connection.
func TestAnObjectThatIsHandedOverSaysWhatTheWireSays(t *testing.T) {
	for name, object := range map[string]any{
		"Job": &api.Job{ID: new("10-a"), Status: new("dead"), TaskGroups: []*api.TaskGroup{{Name: new("config"), Meta: map[string]string{"used": "true"}}}},
		"Evaluation": &api.Evaluation{
			ID: "e", JobID: "j", Status: "complete", StatusDescription: "done", ModifyIndex: 3, FailedTGAllocs: map[string]*api.AllocationMetric{"default-group": {
				NodesEvaluated: 4, NodesFiltered: 1, NodesExhausted: 2, ConstraintFiltered: map[string]int{"c": 1}, DimensionExhausted: map[string]int{"memory": 2},
			}},
		},
		"Allocation": &api.Allocation{
			ID: "a", JobID: "j", TaskGroup: "default-group", NodeID: "n", DesiredStatus: "run", ClientStatus: "running", ClientDescription: "well", PreviousAllocation: "p",
			TaskStates:         map[string]*api.TaskState{"default-task": {State: "running", Events: []*api.TaskEvent{{Type: "Started", Time: 7}}}},
			AllocatedResources: &api.AllocatedResources{Shared: api.AllocatedSharedResources{Ports: []api.PortMapping{{Label: "http", Value: 1, To: 2}}}},
			CreateIndex:        1, ModifyIndex: 2, CreateTime: 3, ModifyTime: 4,
		},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := json.Marshal(map[string]any{name: object})
			if err != nil {
				t.Fatal(err)
			}
			sent, err := (&event{topic: name, data: data}).payload()
			if err != nil {
				t.Fatal(err)
			}
			handed, err := (&event{topic: name, object: func() any { return object }}).payload()
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(sent, handed) {
				t.Errorf("over a connection\n%+v\nhanded over\n%+v", sent, handed)
			}
			read := reflect.ValueOf(handed).FieldByName(name).Elem()
			for i := range read.NumField() {
				if name != "Job" && read.Field(i).IsZero() {
					t.Errorf("%s is not part of this test", read.Type().Field(i).Name)
				}
			}
		})
	}
}
